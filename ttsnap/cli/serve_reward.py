"""`ttsnap serve-reward`: a reward for other processes and machines."""

from __future__ import annotations

from ttsnap.cli import arguments, common
from ttsnap.cli.common import load_torch, loading
from ttsnap.cli.parser import Arguments, Parser
from ttsnap.extras import install
from ttsnap.options.model import ModelOptions

DESCRIPTION = """Serve a reward over HTTP; a search uses it as --reward http://HOST:PORT.

There is no authentication: leave --host at 127.0.0.1, or open it in a network that you trust.

examples:
  ttsnap serve-reward imagereward --device cuda --port 8765
  ttsnap generate "a red circle" --reward http://127.0.0.1:8765
"""


def parser() -> Parser:
    """The command's arguments."""
    p = Parser(DESCRIPTION)
    p.add_argument("reward", type=str, help=arguments.REWARD_HELP)
    arguments.add_options(p, common.ListenOptions, port=8765)
    p.add_argument("--max-images", type=int, default=64, help="most images in one request")
    arguments.add_options(p, ModelOptions, "device", "dtype")
    return p


def run(a: Arguments) -> int:
    """Serve until interrupted."""
    load_torch()
    try:
        from ttsnap.reward_models.serve import Limits, RewardServer
    except ImportError as error:
        raise ValueError(
            f"serving needs fastapi and uvicorn ({error}): {install('serve')}"
        ) from None
    from ttsnap.reward_models.registry import make_reward, refuse_credentials, without_queries

    refuse_credentials(a.reward)
    limits = Limits(max_images=a.max_images)
    device, dtype = common.opening().reward_placement(a.device, a.dtype)
    common.opening().check_here(device)
    with loading(f"the reward {without_queries(a.reward)}"):
        reward = make_reward(a.reward, device=device, dtype=dtype)
    with common.listening(a):
        server = RewardServer(reward, a.host, a.port, limits, device)
    print(f"serving {reward.name} at {server.url} (Ctrl-C ends)", flush=True)
    server.run()
    print("stopped")
    return 0
