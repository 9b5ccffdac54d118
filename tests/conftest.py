"""The tiers of tests, what every test is held to, and fixtures that many tests share.

No import here loads torch: the process that hands tests to others, with `-n`, reads this file and
nothing else.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import gc
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    pass

# The tests' tensors are tiny, and threads that wait for each other are slow on busy machines. Read
# by torch as it is imported, here and in processes that are started from here: xdist's and those of
# tests.
os.environ["OMP_NUM_THREADS"] = "1"
# glibc gives large tensors back to the system when they go, which zeroes each new one page by page:
# a sixth of the time of a small model on a CPU. Read by processes that are started from here, too.
os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}

TESTS = Path(__file__).parent
# for train_worlds, what trains and measures the embedded models
sys.path.append(str(TESTS.parent / "scripts"))
SYSTEM = (
    # A browser, servers, Ray.
    *("demo", "service", "cluster", "reward_models/test_serve.py"),
    # The documentation, run: notebooks, the site, how-tos in a copy of the package.
    *(
        "test_notebooks.py",
        "test_docs_site.py",
        "algorithms/test_new_algorithm.py",
        "engine/test_new_parts.py",
    ),
    *(
        "options/test_new_option.py",
        "test_docs_run.py::test_a_page_runs_as_pasted",
    ),
    *(
        "request/test_new_door.py",
        "rewards/test_how_to.py",
        "pipelines/test_dropin.py::test_the_documentation_runs",
    ),
    # Whole programs, also those that are interrupted, killed, and go on.
    *(
        "test_written_before.py::test_images_are_made_again",
        "test_written_before.py::test_what_was_begun_is_gone_on_with",
        "test_written_before.py::test_a_benchmark_is_gone_on_with",
    ),
    *("test_wheel.py", "bench/test_bench.py", "cli/test_cli_record.py", "cli/test_cli_simulate.py"),
    *(
        "distill/test_run.py",
        "distill/test_cli.py",
        "distill/draft/test_run.py",
        "distill/draft/test_cli.py",
    ),
    *("distill/draft/test_on_paper.py", "simulation/test_processes.py"),
    "bench/test_presets.py::test_parts_have_their_budgets_and_the_table_has_the_papers_layout",
    *("check", "cli/test_cli_pictures.py"),
    "pipelines/test_model_defaults.py::test_the_command_line_says_which_searches_had_drafts_and_no_strangers_drafter_is_loaded",
    "cli/test_own_algorithm.py::test_simulate_takes_it_to_its_workers",
    # The packaged models, and what trains them.
    *(
        "scenes/test_packaged.py",
        "scenes/test_training.py",
        "pipelines/test_lora.py::test_generate_record_and_replay",
    ),
    "signs/test_noise_aware.py::test_the_packaged_one_knows_the_words_of_finished_latents",
    "signs/test_noise_aware.py::test_one_command_trains_the_reader_and_a_student_begins_with_it",
    # Networks that torch compiles, and files from strangers, at each place of which something is
    # forged.
    "pipelines/test_compilation.py",
    "test_strangers.py::test_what_is_no_data_is_refused_in_little_memory",
    "test_strangers.py::test_nothing_that_a_file_names_is_run_fetched_or_opened",
    "test_strangers.py::test_anything_anywhere_in_a_file_is_one_sentence_or_read",
    "test_strangers.py::test_damaged_files_are_one_sentence_or_read",
    # ComfyUI itself, where COMFYUI_PATH names a checkout.
    *(f"comfyui/test_real_{name}.py" for name in ("examples", "nodes", "search")),
    # What fast tests hold in one case, here in many: classic pipelines over modular blocks, all
    # workflows of those, more schedulers, texts of any length, a CPU in the place of a GPU,
    # requirements, prices.
    *("pipelines/modular/test_classic.py", "gpu/test_pipelines.py"),
    "pipelines/calls/test_calls.py::test_winners_are_what_the_stock_call_makes_of_their_seeds",
    "pipelines/calls/test_ledger.py::test_12_mixed_searches_from_4_threads_on_one_pipe_are_what_each_is_alone",
    "pipelines/calls/test_measured.py::test_three_lines_are_measured_again",
    "pipelines/calls/test_measured.py::test_calls_that_were_refused_once",
    "pipelines/calls/test_calls.py::test_searches_from_two_threads_find_what_each_finds_alone",
    "algorithms/test_contract.py::test_a_requirement_that_all_images_meet_changes_nothing",
    "pipelines/test_on_meta.py::test_so_it_is_for_other_models_and_kinds_of_searches",
    "pipelines/test_parity.py::test_a_batch_of_seeds_is_the_stock_calls_images",
    "simulation/test_drafted.py::test_priced_lockstep_with_drafts_is_the_loop",
    "pipelines/modular/test_workflows.py::test_pruned_winners_in_mixed_batches_are_made_again_from_their_seeds",
    "pipelines/test_flops.py::test_longer_texts_are_counted_anew_by_a_pipeline_that_counted_others",
    # Statistics over hundreds of searches, and trainings.
    "algorithms/test_smc.py::test_estimates_are_unbiased",
    "sampling/test_guidance.py::test_guided_smc_estimates_the_same_constant_and_mean",
    "simulation/test_drafted.py::test_drafts_are_worth_their_price_where_they_tell_much",
    "simulation/test_drafted.py::test_tuning_takes_the_drafts_that_tell_and_finishes_what_they_leave",
    "simulation/test_tune.py::test_the_planted_step_is_found",
    "simulation/test_simulate.py::test_the_calibrated_price_spends_the_allowance",
    "reward_models/test_noise_aware.py::test_a_level_dependent_target_is_learned",
    "reward_models/test_noise_aware.py::test_a_network_of_another_reward_is_trained_for_a_black_box",
    "signs/test_noise_aware.py::test_it_is_distilled_saved_and_loaded",
)
"""Folders, files and tests of the tier `system`. All others are of the fast tier, but those that
are marked `slow`."""
FIRST = ("tests/test_notebooks.py", "tests/demo/", "tests/cluster/", "tests/service/")
"""What takes longest begins first, so that no process is left alone with it at the end."""
TOGETHER = ("tests/demo", "tests/cluster", "tests/service", "tests/comfyui")
"""Folders whose modules share a server or Ray, which would otherwise be begun in each process."""
WHOLE = {TESTS / name for name in SYSTEM if "::" not in name}
SINGLE = {
    (TESTS / file, test) for file, _, test in (name.partition("::") for name in SYSTEM) if test
}


@functools.cache
def is_whole(path):
    return not WHOLE.isdisjoint((path, *path.parents))


def is_system(path, test=""):
    """Whether all of a file, or this test in it, is of the tier `system`."""
    return is_whole(path) or (path, test) in SINGLE


def pytest_ignore_collect(collection_path, config):
    """Files of the other tier are not even imported: `make test` needs no gradio, and loads
    none."""
    marked, whole = config.getoption("markexpr"), is_system(collection_path)
    if "not system" in marked:
        return whole or None
    if marked.startswith("system") and collection_path.suffix == ".py":
        return not (whole or any(collection_path == file for file, _ in SINGLE)) or None
    return None


def pytest_collection():
    """Nothing of what is imported and collected is garbage: no collector looks for it meanwhile."""
    gc.disable()


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items):
    for item in items:
        if is_system(item.path, getattr(item, "originalname", "")):
            item.add_marker("system")
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


def pytest_collection_finish():
    """What is imported and collected stays. A garbage collector that walks through it again and
    again takes a sixth of the time, so it leaves that out, and begins less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    """What fails is told at once, too: a run that is ended from outside prints no summary."""
    if report.failed and sys.__stderr__ is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid}: {report.longreprtext[-2000:]}", file=sys.__stderr__, flush=True)


def pytest_sessionfinish(session):
    """A process of xdist that does not end says where it waits, and is ended."""
    if hasattr(session.config, "workerinput"):
        faulthandler.dump_traceback_later(120, exit=True)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """`pytest -n 2` hands out whole modules, whose tests share fixtures, unless it is told another
    `--dist`."""
    if config.getoption("numprocesses", None) and config.getoption("dist") == "no":
        config.option.dist = "loadscope"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadscope`: modules are handed out in the order of the tests, not by how many
    tests they hold."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = super()._split_scope(nodeid)
            return next((folder for folder in TOGETHER if module.startswith(f"{folder}/")), module)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _float32_on_every_cpu():
    """--dtype auto is float32 in tests, whatever the CPU can do, so that they see the same images
    on every machine."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """A test that leaves torch more threads fails: all tests after it take many times as long in
    that process."""
    import torch

    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, f"torch has {left} threads after this test"


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, as on a terminal; under nohup, and in a background of
    scripts, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def ray_session():
    from tests.on_ray import ray_runs

    with ray_runs():
        yield


@pytest.fixture
def shallow_model(request):
    """The embedded model is loaded as `shallow` says, but for tests with Ray, whose processes load
    the whole one."""
    from tests.shallow import shallow

    with nullcontext() if "ray_session" in request.fixturenames else shallow():
        yield


@pytest.fixture
def few_prices(monkeypatch):
    """`ttsnap tune --policy price-of-compute` finds the prices of two budgets on 30 seeds, not of seven on 200, for
    other tests."""
    from ttsnap.simulation.calibrate import calibrate

    def quick(recording, checks=None, costs=None, *, fit):
        return calibrate(recording, checks, costs, (3, 8), dataclasses.replace(fit, seeds=30))

    monkeypatch.setattr("ttsnap.simulation.calibrate.calibrate", quick)


@pytest.fixture
def counted():
    import torch

    from tests.counted import Counted

    def make(steps=8, prompts=3, **kwargs):
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(4, 3, generator=generator)
        offsets = torch.randn(prompts, 3, generator=generator)
        weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
        return Counted(
            means, torch.full((4,), 0.3), weights, steps=steps, by_prompt=offsets, **kwargs
        )

    return make


@pytest.fixture
def engine(counted):
    from tests.counted import Brightness
    from ttsnap.engine.live import LiveEngine
    from ttsnap.options.engine import EngineOptions
    from ttsnap.options.option import taken
    from ttsnap.sampling.kernels import make_kernel

    def make(
        steps=8,
        rewards=None,
        batch_size=4,
        prompts=3,
        *,
        kernel=None,
        **kwargs,
    ):
        given, denoiser = {"batch_size": batch_size, **kwargs}, counted(steps, prompts)
        options = taken(EngineOptions, given)
        sampler = make_kernel(kernel or "pipeline", denoiser)
        return LiveEngine(denoiser, rewards or [Brightness()], options, kernel=sampler, **given)

    return make
