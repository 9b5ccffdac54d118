"""The preview VAE: a small decoder for estimates that are looked at only."""
