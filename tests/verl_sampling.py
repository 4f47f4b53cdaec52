"""Draws from a file by `recipes.sampler.verl` behind verl's own loading code; prints JSON.

Run in a process of its own, with verl, torchdata and this repository on PYTHONPATH:
`python verl_sampling.py FILE VALIDATION TOKENIZER CACHE`. verl's packages import Ray and vLLM's
friends when they are imported; the modules that read datasets and hold rollouts need none of it,
so the packages around them are left bare. TransferQueue is stood in for by a dictionary.
"""

import importlib.util
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

spec = importlib.util.find_spec("verl")
assert spec is not None and spec.origin is not None
root = Path(spec.origin).parent
for package in (
    *("verl", "verl.utils", "verl.utils.dataset"),
    *("verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.v1"),
):
    bare = types.ModuleType(package)
    bare.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    sys.modules[package] = bare


class Queue:
    """What verl's replay buffer asks of TransferQueue: tags and fields by key."""

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, Any]] = {}
        self.fields: dict[str, dict[str, Any]] = {}

    def kv_list(self) -> dict[str, Any]:
        return {"train": dict(self.tags)}

    def kv_clear(self, partition_id: str, keys: list[str]) -> None:
        for key in keys:
            self.tags.pop(key, None)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        return {name: [self.fields[key][name] for key in keys] for name in select_fields}


class Meta:
    """A batch by its keys."""

    def __init__(self, partition_id: str, keys: list[str], tags: list[Any]) -> None:
        self.keys, self.tags = keys, tags


queue = Queue()
stand_in: Any = types.ModuleType("transfer_queue")
stand_in.KVBatchMeta = Meta
for name in ("kv_list", "kv_clear", "kv_batch_get"):
    setattr(stand_in, name, getattr(queue, name))
sys.modules["transfer_queue"] = stand_in
skip: Any = types.ModuleType("verl.utils.skip")
skip.SkipManager = types.SimpleNamespace(annotate_tq=lambda **_: lambda function: function)
sys.modules["verl.utils.skip"] = skip

import torch  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402
from torchdata.stateful_dataloader.sampler import RandomSampler  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from verl.utils.dataset.rl_dataset import collate_fn, get_dataset_class  # noqa: E402
from verl.utils.import_utils import load_extern_object  # noqa: E402

file, validation, tokenizer, cache = sys.argv[1:]
config = OmegaConf.create(
    {
        "train_files": [file],
        "val_files": validation,
        "train_batch_size": 4,
        "cache_dir": cache,
        "prompt_key": "prompt",
        "max_prompt_length": 100,
        "filter_overlong_prompts": False,
        "custom_cls": {"path": "pkg://recipes.sampler.verl", "name": "CurateDataset"},
        "curate": {"group_size": 4, "seed": 1, "look_again": 0.0, "half_life": 20},
    }
)


def dataset_of(files: Any) -> Any:
    """As verl's create_rl_dataset makes it."""
    return get_dataset_class(config)(
        data_files=files, tokenizer=AutoTokenizer.from_pretrained(tokenizer), processor=None,
        config=config, max_samples=-1,
    )  # fmt: skip


def loader_of(dataset: Any) -> Any:
    """As verl's trainers make it, with the shuffling that is their default."""
    generator = torch.Generator()
    generator.manual_seed(1)
    return StatefulDataLoader(
        dataset, batch_size=4, num_workers=0, drop_last=True, collate_fn=collate_fn,
        sampler=RandomSampler(data_source=dataset, generator=generator),
    )  # fmt: skip


def right(item: str) -> list[float]:
    """The rewards of a group: the first item is solved, the others are right half of the time."""
    return [1.0] * 4 if item == first else [1.0, 0.0, 1.0, 0.0]


def train(dataset: Any, loader: Any, epochs: int, stop: int = 10**9) -> list[list[str]]:
    """As the trainer of `use_v1=False` goes on: a `DataProto` has these two after each step."""
    seen: list[list[str]] = []
    for _ in range(epochs):
        for batch in loader:
            infos = [info for info in batch["extra_info"] for _ in range(4)]
            scores = torch.zeros(len(infos), 3)
            scores[:, -1] = torch.tensor(
                [reward for info in batch["extra_info"] for reward in right(info["item_id"])]
            )
            proto = types.SimpleNamespace(
                batch={"token_level_scores": scores}, non_tensor_batch={"extra_info": infos}
            )
            seen.append(list(batch["item_id"]))
            dataset.on_batch_end(batch=proto)
            if len(seen) == stop:
                return seen
    return seen


first = dataset_of([file]).dataframe[4]["item_id"]
dataset = dataset_of([file])
loader = loader_of(dataset)
whole = train(dataset, loader, epochs=3)
signal = dataset.item_sampler.signal().tolist()

# Cut off in the second epoch: data.pt has the loader's state, and with it the dataset's.
dataset = dataset_of([file])
loader = loader_of(dataset)
train(dataset, loader, epochs=3, stop=7)
state = pickle.loads(pickle.dumps(loader.state_dict()))
dataset = dataset_of([file])
loader = loader_of(dataset)
loader.load_state_dict(state)
resumed = train(dataset, loader, epochs=2)

# The trainer of 0.9: prompts go out, their rollouts come back by a replay buffer.
dataset = dataset_of([file])
buffer_class: Any = load_extern_object("pkg://recipes.sampler.verl_v1", "CurateReplayBuffer")
buffer = buffer_class("sync", {}, 8, "drop", {}, refill_fn=None)
iterator = iter(loader_of(dataset))
by_buffer = []
for step in range(3):
    batch = next(iterator)
    by_buffer.append(list(batch["item_id"]))
    for n, info in enumerate(batch["extra_info"]):
        uid = f"{step}-{n}"
        queue.tags[uid] = {"is_prompt": True, "status": "finished", "global_steps": step}
        for session, reward in enumerate(right(info["item_id"])):
            queue.tags[f"{uid}_{session}_0"] = {"status": "success", "global_steps": step}
            queue.fields[f"{uid}_{session}_0"] = {
                "extra_info": info, "rm_scores": torch.tensor([0.0, reward])
            }  # fmt: skip
    handed_out, _ = buffer.sample(global_steps=step, partition_id="train", batch_size=4)
    assert len(handed_out.keys) == 16
    queue.tags.clear()
told = dataset.item_sampler.state_dict()["batches"]

# Another file is read as it stands, and a worker's copy is refused.
plain = [dataset_of(validation)[n]["item_id"] for n in range(3)]
try:
    next(iter(StatefulDataLoader(dataset, batch_size=4, num_workers=1, collate_fn=collate_fn)))
    refused = ""
except ValueError as error:
    refused = str(error)
found = {
    "whole": whole,
    "signal": signal,
    "resumed": resumed,
    "by_buffer": by_buffer,
    "told": told,
    "plain": plain,
    "refused": refused,
}
print("\n" + json.dumps(found))
