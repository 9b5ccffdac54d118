"""The base model: data, autoencoder, generator, export to a stock diffusers folder, evaluation."""
