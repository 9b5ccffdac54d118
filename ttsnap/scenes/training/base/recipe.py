"""The recipe of the packaged base model: its defaults made the weights that are shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ttsnap.files.settings import Bounds, Count, Decay, Natural, NotNegative, Positive, Settings, Share


@dataclass(frozen=True)
class Call(Settings):
    """Arguments of the pipeline call; those of the recipe are recommended in the folder's ttsnap.json.

    max_sequence_length: zero tokens that the stock call appends to the text, 1 to 256.
    """

    num_inference_steps: Count = 20
    guidance_scale: float = 4.0
    max_sequence_length: Annotated[int, Bounds(1, 256)] = 1


@dataclass(frozen=True)
class Probe(Settings):
    """How often the model's pictures are checked on the way: every so many steps, `per_kind` captions of each kind.

    final_per_kind: captions of each kind for the table at the end; 0 for none.
    """

    every: Count = 500
    per_kind: Count = 16
    final_per_kind: Natural = 64


@dataclass(frozen=True)
class Data(Settings):
    """Rendered pictures, their captions, and label maps in cells of `cell` x `cell` pixels."""

    images: Count = 300_000
    seed: Natural = 0
    cell: Count = 4


@dataclass(frozen=True)
class VaeSize(Settings):
    """The autoencoder: channels of each stage (every one after the first halves the picture), layers in each, and
    groups of the group norms."""

    latent_channels: Count = 8
    channels: Annotated[tuple[int, ...], Bounds(1)] = (16, 32, 64)
    layers: Count = 1
    groups: Count = 8


@dataclass(frozen=True)
class VaeRecipe(Settings):
    """How the autoencoder is trained.

    noise: largest noise level that the decoder sees, in latent standard deviations.
    moments: weight of the zero-mean, unit-variance penalty.
    reading: weight of reading object classes from the latent.
    posterior_std: the constant that the posterior's standard deviation is set to.
    """

    model: VaeSize = VaeSize()
    lr: Positive = 2e-3
    batch: Count = 48
    steps: Count = 2500
    bf16: bool = False
    noise: NotNegative = 0.3
    moments: NotNegative = 0.02
    reading: NotNegative = 0.02
    posterior_std: Positive = 0.1


@dataclass(frozen=True)
class TextSize(Settings):
    """A CLIP text encoder."""

    width: Count
    layers: Count
    heads: Count


@dataclass(frozen=True)
class TransformerSize(Settings):
    """The SD3 transformer; its width is heads * head_dim."""

    layers: Count = 5
    heads: Count = 3
    head_dim: Count = 64

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class NoiseLevels(Settings):
    """Which noise levels training sees: the sigmoid of a normal variable, and a uniform share besides.

    A mean above 0 leans to high noise, where the layout of a picture is decided.
    """

    mean: float = 0.5
    std: Positive = 1.1
    uniform: Share = 0.2


@dataclass(frozen=True)
class GeneratorRecipe(Settings):
    """How text encoders and transformer are trained.

    warmup: steps over which the learning rate rises.
    decay_steps: steps at the end over which it falls to 0.
    adam_lr, muon_lr: learning rates of AdamW, and of Muon for the matrices inside blocks; 0 for AdamW alone.
    muon_ns_steps: Newton-Schulz iterations in a step of Muon.
    caption_dropout: share of captions that are left out, for classifier-free guidance.
    zero_tokens: for how many zero tokens the last one may stand; drawn at random per sample.
    reading: weight of the reading task, 0 for none.
    reading_block: the transformer block after which it reads, from 0.
    compile: whether the transformer's blocks are compiled.
    """

    text: TextSize = TextSize(width=128, layers=3, heads=4)
    text_2: TextSize = TextSize(width=32, layers=1, heads=1)
    transformer: TransformerSize = TransformerSize()
    batch: Count = 32
    steps: Count = 2700
    warmup: Count = 100
    decay_steps: Natural = 700
    adam_lr: Positive = 1e-3
    muon_lr: NotNegative = 2e-3
    muon_ns_steps: Count = 3
    weight_decay: NotNegative = 0.01
    ema: Decay = 0.998
    sigma: NoiseLevels = NoiseLevels()
    caption_dropout: Share = 0.1
    zero_tokens: Annotated[tuple[int, ...], Bounds(1)] = (1, 1, 1, 1, 16, 77, 256, 256, 256)
    reading: NotNegative = 0.3
    reading_block: Natural = 2
    bf16: bool = True
    compile: bool = True


@dataclass(frozen=True)
class BaseRecipe(Settings):
    """The base model: data, autoencoder, and generator (about 25 minutes on two idle cores).

    shift: of the sampler's noise levels.
    save_every: steps between the generator's checkpoints.
    """

    seed: Natural = 0
    shift: Positive = 1.0
    save_every: Count = 500
    defaults: Call = Call()
    probe: Probe = Probe()
    data: Data = Data()
    vae: VaeRecipe = VaeRecipe()
    generator: GeneratorRecipe = GeneratorRecipe()
