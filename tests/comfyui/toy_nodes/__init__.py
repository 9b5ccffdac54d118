"""A pack for tests: the embedded model, which ComfyUI's own loaders cannot read, and a node that
scores images.

Copied into a folder `custom_nodes`, and imported by ComfyUI alone: `ttsnap` must be installed where
it runs.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .embedded import EmbeddedText, embedded_model, embedded_vae


class ToyCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ToyCheckpoint",
            display_name="Toy Checkpoint",
            category="loaders",
            inputs=[io.Combo.Input("parametrisation", options=["flow", "eps"], default="flow")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, parametrisation):
        return io.NodeOutput(embedded_model(parametrisation), EmbeddedText(), embedded_vae())


class ToyRedness(io.ComfyNode):
    """A node of somebody else that scores an image."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ToyRedness",
            display_name="Toy Redness",
            category="image",
            inputs=[
                io.Image.Input("picture"),
                io.Float.Input("gain", default=1.0),
                io.String.Input("text"),
            ],
            outputs=[io.String.Output(), io.Float.Output()],
        )

    @classmethod
    def execute(cls, picture, gain, text):
        return io.NodeOutput(
            text, float((picture[..., 0] - picture[..., 2]).clamp(min=0).mean()) * gain
        )


class ToyNodes(ComfyExtension):
    async def get_node_list(self):
        return [ToyCheckpoint, ToyRedness]


async def comfy_entrypoint():
    return ToyNodes()
