"""Drafts: guesses of finished images by another network, from the noise or on the way.

`drafters` finds or makes that network; `known_drafters` lists published ones by name. `drafting`
calls it in the denoiser's place. `own_draft` says which searches take the drafter that a model's
folder names.
"""
