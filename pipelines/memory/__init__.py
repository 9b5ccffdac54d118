"""The cost of an evaluation, and how the network runs.

`flops` counts FLOPs on copies of the networks on the meta device, and keeps the counts with the
pipeline. `acceleration` chooses attention kernels and compiles the network in place.
"""
