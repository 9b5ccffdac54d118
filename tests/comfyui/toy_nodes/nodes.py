"""The node "Toy Checkpoint", with the outputs of ComfyUI's "Load Checkpoint"."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .embedded import EmbeddedText, embedded_model, embedded_vae


class ToyCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ToyCheckpoint",
            display_name="Toy Checkpoint",
            category="loaders",
            inputs=[io.Combo.Input("parametrisation", options=["flow", "eps"], default="flow")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, parametrisation: str) -> io.NodeOutput:
        return io.NodeOutput(embedded_model(parametrisation), EmbeddedText(), embedded_vae())


class ToyNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ToyCheckpoint]
