"""Loads a file by verl's own RLHFDataset and prints what it hands to the trainer, as JSON.

Run in a process of its own, with verl on PYTHONPATH: `python verl_loading.py FILE TOKENIZER CACHE`.
verl's packages import Ray and vLLM's friends when they are imported; the module that reads datasets
needs none of it, so the packages around it are left bare.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

spec = importlib.util.find_spec("verl")
assert spec is not None and spec.origin is not None
root = Path(spec.origin).parent
for package in ("verl", "verl.utils", "verl.utils.dataset"):
    bare = types.ModuleType(package)
    bare.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    sys.modules[package] = bare

from omegaconf import OmegaConf  # noqa: E402
from torch.utils.data import DataLoader, SequentialSampler  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn  # noqa: E402

file, tokenizer, cache = sys.argv[1:]
config = OmegaConf.create(
    {
        "cache_dir": cache,
        "prompt_key": "prompt",
        "max_prompt_length": 100,
        "filter_overlong_prompts": True,
        "filter_overlong_prompts_workers": 1,
        "shuffle": False,
    }
)
dataset = RLHFDataset(file, AutoTokenizer.from_pretrained(tokenizer), config)
# What verl's create_rl_sampler makes of data.shuffle=False.
loader = DataLoader(dataset, 4, sampler=SequentialSampler(dataset), collate_fn=collate_fn)
found = [
    {name: batch[name][n] for name in batch if name != "dummy_tensor"}
    for batch in loader
    for n in range(len(batch["dummy_tensor"]))
]
print("\n" + json.dumps(found))
