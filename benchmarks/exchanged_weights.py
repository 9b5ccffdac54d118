"""What it takes to exchange a reward's weights from noise level to noise level
(noise_aware/released.py).

    python benchmarks/exchanged_weights.py                       # ViT-H-14 of HPSv2, random weights, 12 GB of memory
    python benchmarks/exchanged_weights.py --architecture ViT-B-32

The network has the published size and random weights. Three levels hold a whole fine-tune each, as
DOG-Trim releases them. Printed are the memory of a level, seconds of an exchange, and of scoring an
image beside it.
"""

from __future__ import annotations

import argparse
import time

import torch

from ttsnap.files.writing import markdown
from ttsnap.reward_models.clip import import_open_clip
from ttsnap.reward_models.hpsv2 import HPSv21
from ttsnap.reward_models.noise_aware.released import ReleasedNoiseAware
from ttsnap.reward_models.noise_aware.schedule import level_of
from ttsnap.reward_models.preprocess import Preprocess


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--architecture", default="ViT-H-14", help="as open_clip names it")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    p.add_argument("--repeats", type=int, default=5)
    a = p.parse_args()
    open_clip = import_open_clip()
    network = open_clip.create_model(a.architecture, pretrained=None).to(
        a.device, getattr(torch, a.dtype)
    )
    tokenizer = open_clip.get_tokenizer(a.architecture)
    base = HPSv21(
        network, tokenizer, Preprocess(network.visual.preprocess_cfg["size"][0], fit="pad")
    )
    own = {
        name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()
    }
    levels = [level_of(n) for n in (7, 14, 21)]
    reward = ReleasedNoiseAware(
        base, {level: {n: (t * 0.999).cpu() for n, t in own.items()} for level in levels}
    )
    image, prompts = torch.rand(1, 3, 224, 224, device=a.device), ["a photo"]

    def seconds(at: tuple[float, ...]) -> float:
        """The least seconds of a call at the last of these levels, after the others."""
        least = float("inf")
        for _ in range(a.repeats):
            for level in at[:-1]:
                reward(image, prompts, level)
            begin = time.perf_counter()
            reward(image, prompts, at[-1]).sum().item()
            least = min(least, time.perf_counter() - begin)
        return least

    same, other = seconds((levels[0], levels[0])), seconds((levels[0], levels[1]))
    size = sum(tensor.nbytes for tensor in own.values()) / 2**30
    heads = [
        a.architecture,
        "GiB a level",
        "seconds of a call",
        "with an exchange",
        "an exchange by itself",
    ]
    print(
        markdown(
            heads,
            [
                [
                    f"{a.dtype}, {a.device}",
                    round(size, 2),
                    *(f"{s:.3f}" for s in (same, other, other - same)),
                ]
            ],
        )
    )


if __name__ == "__main__":
    main()
