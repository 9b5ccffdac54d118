"""What an evaluation costs, and how the network runs: FLOPs, kept figures, attention kernels, torch.compile.

`flops` counts on copies of the networks on the meta device and keeps the counts with the pipeline; `counted` is the
denoiser's side of that. `acceleration` chooses attention kernels and compiles the network in place.
"""
