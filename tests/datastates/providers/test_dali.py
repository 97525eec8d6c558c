"""NVIDIA DALI pipelines on the CPU: readers, shuffling and random operators resume bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import ProviderConformance, assert_same

import datastates

pytest.importorskip("nvidia.dali", reason="pip install elastates[dali]")
from nvidia.dali import fn, pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator

NUM_FILES = 11


@pytest.fixture(autouse=True, scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("samples")
    for i in range(NUM_FILES):
        np.save(directory / f"{i:02d}.npy", np.full((3,), i, dtype=np.float32))
    TestDali.files = str(directory)


@pipeline_def(batch_size=3, num_threads=2, device_id=None, enable_checkpointing=True)
def samples(files: str) -> Any:
    array = fn.readers.numpy(
        device="cpu", file_root=files, file_filter="*.npy", random_shuffle=True, shuffle_after_epoch=False, name="files"
    )
    return array * fn.random.uniform(range=[0.5, 1.5]), fn.random.coin_flip()


def run(pipeline: Any, num_batches: int) -> list[list[np.ndarray]]:
    return [[np.array(output.as_array()) for output in pipeline.run()] for _ in range(num_batches)]


class TestDali(ProviderConformance):
    """Content is what the pipeline would give from here on, past the end of an epoch."""

    files: str

    def make(self, seed: int) -> dict[str, Any]:
        def make_pipeline(checkpoint: bytes | None = None) -> Any:
            return samples(self.files, seed=seed, checkpoint=checkpoint)

        return {"data": {"dali": datastates.dali_pipeline(make_pipeline), "epoch": seed}}

    def change(self, state: dict[str, Any]) -> None:
        run(state["data"]["dali"], 2)
        state["data"]["epoch"] += 1

    def content(self, state: dict[str, Any]) -> Any:
        dali = state["data"]["dali"]
        ahead = samples(self.files, seed=99, checkpoint=dali.pipeline.checkpoint())
        ahead.build()
        return [run(ahead, NUM_FILES), state["data"]["epoch"]]

    restores_in_place = False

    def test_it_goes_on_as_the_one_that_was_not_interrupted(self, tmp_path: Path) -> None:
        whole, resumed = self.make(1), self.make(1)
        run(whole["data"]["dali"], 5)
        with datastates.Checkpointer(tmp_path) as checkpoints:
            checkpoints.checkpoint(4, whole)
            expected = run(whole["data"]["dali"], 9)
            assert checkpoints.restore(resumed) == 5
        assert_same(run(resumed["data"]["dali"], 9), expected)


def test_the_iterator_of_torch_s_plugin_goes_on_in_its_epoch(tmp_path: Path) -> None:
    def make_iterator(checkpoints: Any = (None, None)) -> Any:
        pipelines = [samples(TestDali.files, seed=i, checkpoint=c) for i, c in enumerate(checkpoints)]
        return DALIGenericIterator(pipelines, ["x", "flip"], reader_name="files", auto_reset=True)

    def drawn(batch: list[dict[str, Any]]) -> list[Any]:
        return [{key: tensor.clone() for key, tensor in outputs.items()} for outputs in batch]

    dali = datastates.dali_iterator(make_iterator)
    epoch = iter(dali)
    next(epoch)
    state: dict[str, Any] = {"dali": dali}
    with datastates.Checkpointer(tmp_path) as checkpoints:
        checkpoints.checkpoint(0, state)
        expected = [*map(drawn, epoch), *map(drawn, dali)]
        state["dali"] = datastates.dali_iterator(make_iterator)
        checkpoints.restore(state)
    resumed = state["dali"]
    assert_same([*map(drawn, resumed), *map(drawn, resumed)], expected)
    assert len(expected) > 4
