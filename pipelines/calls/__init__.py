"""Searches with any pipeline of diffusers: its stock call runs for each candidate, suspended where search decides.

A `CallFrame` is one stock call under way. It stops where its latents are drawn, where a network or a decoder is
called, and where the scheduler steps. The `Hub` answers the calls of many frames in one batch. A `Rehearsal`, which
asks no network, tells what no table says of the pipeline. A `CallsDenoiser` makes a Denoiser of them.
"""
