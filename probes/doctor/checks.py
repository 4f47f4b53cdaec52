"""What `curate doctor --try` tries, with torch loaded: a process of its own runs this.

    python -m probes.doctor.checks '{"model": "", "names": ["model", "sampling"]}'

A model draws rollouts, they are verified, scored again and differentiated, and one training step is
taken, all by what a run uses, on this machine's device and in its precision. What comes out is held
against the CPU in float32 and against plain autograd, which shares no code with it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curate.errors import CurateError, one_line
from probes.doctor.small_model import SIZES, policy_of_size, small_policy
from probes.doctor.training_step import TrainedAdapter
from probes.doctor.tries import MARK, NAMES, Tried
from probes.engines.base import Rollout, SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.memory import free_bytes, recomputed_bytes
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import (
    Policy,
    choose_device,
    choose_dtype,
    device_name,
    is_out_of_memory,
    load_policy,
)
from probes.rescoring.teacher_forcing import log_probabilities
from probes.verifiers.pool import VerifierPool

_SEED = 42
_TEXTS = (
    *("What is 17 + 25?", "A train leaves at nine and arrives at noon. How long does it take?"),
    *("Name three prime numbers.", "Solve x + 3 = 10 for x. Think step by step.", "2, 4, 8, 16,"),
    *("The capital of France is", "How many sides has a hexagon?", "Write 0.75 as a fraction."),
)
_COMPARED = 4
"""Rollouts that are compared with a slower way to the same."""
_JUDGED = ((r"So the answer is \boxed{42}.", "42", 1.0), (r"It is \boxed{41}.", "42", 0.0))
_FLOAT32_NATS = {"from_sampling": 1e-3, "from_cpu": 1e-3}
_BFLOAT16_NATS = {"from_sampling": 0.1, "from_cpu": 0.3}
"""By how much the log-probability of a token may differ, averaged over a rollout: in bfloat16 the
logits of a language model come in steps of an eighth."""
_HEAD_BYTES = 2**31
"""Of the logits that a gradient pass holds at once, and what else does not grow with its length."""
_TRIED_SECONDS = 15.0
_CUDA_REMEDY = (
    "if `CUDA_VISIBLE_DEVICES= curate doctor --try` passes, it is the GPU, its driver or this "
    "torch build: https://pytorch.org/get-started/locally"
)
_CPU_REMEDY = "install the versions that were tested (`versions` above names them)"


class Trial:
    """A model on a device, and what the checks have made with it so far.

    Args:
        model: as `curate tag` takes it; empty: the small one.
        trust_remote_code: run Python code that comes with it.
        device, dtype: what suits this machine where None.
    """

    def __init__(
        self,
        model: str = "",
        *,
        trust_remote_code: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.trust_remote_code = model, trust_remote_code
        self.device = device or choose_device()
        self.dtype = dtype or choose_dtype(self.device)
        self.drawn: list[Rollout] = []
        self._is_unloadable = False
        self.on_gpu = self.device.type == "cuda"
        # A GPU is busy with hundreds of rows, a CPU with few.
        samples = 32 if self.on_gpu else 4 if model else 8
        self.samples, self.max_tokens = samples, 64 if self.on_gpu else 16 if model else 32

    @property
    def remedy(self) -> str:
        """What to do about a result that is wrong."""
        return _CUDA_REMEDY if self.on_gpu else _CPU_REMEDY

    @cached_property
    def policy(self) -> Policy:
        """The model on this machine's device, in its precision.

        Raises:
            CurateError: it could not be loaded before.
        """
        if self._is_unloadable:
            raise CurateError("there is no model to try it with")
        self._is_unloadable = True
        policy = self._loaded(self.device, self.dtype)
        self._is_unloadable = False
        return policy

    @cached_property
    def reference(self) -> Policy:
        """The same on the CPU in float32."""
        cpu = torch.device("cpu")
        if self.device == cpu and self.dtype == torch.float32:
            return self.policy
        parameters = sum(each.numel() for each in self.policy.model.parameters())
        if 4 * parameters > 0.7 * free_bytes(cpu):
            raise CurateError(
                f"in float32 the model takes {4 * parameters / 1e9:.3g} GB on the CPU, which are "
                "not free: results cannot be compared; try a smaller model"
            )
        policy = self._loaded(cpu, torch.float32)
        # Of the same numbers: what is compared is how they are computed with.
        with torch.no_grad():
            for each in policy.model.parameters():
                each.copy_(each.to(self.dtype))
        return policy

    def _loaded(self, device: torch.device, dtype: torch.dtype) -> Policy:
        if not self.model:
            return small_policy(device, dtype)
        return load_policy(
            resolve_model(self.model),
            device=device,
            dtype=dtype,
            trust_remote_code=self.trust_remote_code,
        )

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of prompts of several lengths."""
        if self.model:
            return [list(self.policy.tokenizer(text)["input_ids"]) for text in _TEXTS]
        rng = np.random.default_rng(_SEED)
        return [rng.integers(16, 256, size=5 + 4 * each).tolist() for each in range(8)]

    def draw(self) -> list[Rollout]:
        """Sample, in the order of prompts and samples."""
        engine = TransformersEngine(
            self.policy, seed=_SEED, temperature=1.0, max_tokens=self.max_tokens
        )
        requests = [
            SampleRequest(str(number), prompt, 0, self.samples)
            for number, prompt in enumerate(self.prompts)
        ]
        return sorted(engine.sample(requests), key=lambda one: (int(one.item_id), one.sample))

    @property
    def rollouts(self) -> list[TokenizedRollout]:
        """Those that were drawn, or else made ones of random tokens."""
        if self.drawn:
            return [
                TokenizedRollout(self.prompts[int(one.item_id)], one.completion_token_ids)
                for one in self.drawn
            ]
        rng = np.random.default_rng(_SEED)
        most = min(256, int(self.policy.model.get_input_embeddings().weight.shape[0]))
        return [
            TokenizedRollout(prompt, rng.integers(most, size=8 + number).tolist())
            for prompt in self.prompts
            for number in range(self.samples)
        ]

    @property
    def compared(self) -> list[TokenizedRollout]:
        """A few of them, of two prompts, no two alike."""
        distinct = {
            (tuple(one.prompt_token_ids), tuple(one.completion_token_ids)): one
            for one in self.rollouts
        }
        by_prompt: dict[tuple[int, ...], list[TokenizedRollout]] = {}
        for (prompt, _), one in distinct.items():
            by_prompt.setdefault(prompt, []).append(one)
        half = _COMPARED // 2
        return [one for group in list(by_prompt.values())[:2] for one in group[:half]]

    @cached_property
    def exact(self) -> NDArray[np.float32]:
        """Gradients of `compared` by plain autograd on the CPU in float32."""
        return TrainedAdapter(self.reference, Adapter()).gradients(self.compared)

    def features(
        self, rollouts: Sequence[TokenizedRollout], adapter: Adapter
    ) -> NDArray[np.float32]:
        """What the gradient stage computes on this machine's device."""
        found: dict[int, NDArray[np.float32]] = {}
        for places, batch in GradientProbe(self.policy, adapter).gradients(rollouts):
            found |= dict(zip(places, batch, strict=True))
        if len(found) < len(rollouts):
            raise CurateError("memory ran out on the gradient of a short rollout")
        return np.stack([found[place] for place in range(len(rollouts))])


# --- The checks ------------------------------------------------------------------------------


def check_model(trial: Trial) -> Tried:
    """The model can be loaded onto the device."""
    start = time.monotonic()
    policy = trial.policy
    seconds = time.monotonic() - start
    parameters = sum(each.numel() for each in policy.model.parameters())
    text = (
        f"{policy.files.name}, {parameters / 1e6:,.3g} million parameters in {_name(trial.dtype)} "
        f"on the {device_name(trial.device)}, loaded in {seconds:.1f} s"
    )
    return Tried("model", True, text, numbers={"parameters": parameters, "seconds": seconds})


def check_sampling(trial: Trial) -> Tried:
    """Every rollout that is asked for comes once, of tokens that there are."""
    _warm_up(trial)
    start = time.monotonic()
    trial.drawn = trial.draw()
    seconds = time.monotonic() - start
    wanted = [
        (str(prompt), sample)
        for prompt in range(len(trial.prompts))
        for sample in range(trial.samples)
    ]
    lengths = [len(one.completion_token_ids) for one in trial.drawn]
    rate = sum(lengths) / seconds
    numbers = {"rollouts": len(lengths), "tokens_per_second": rate}
    known = trial.policy.model.get_output_embeddings().weight.shape[0]
    ends = trial.policy.eos_token_ids
    ids = [token for one in trial.drawn for token in one.completion_token_ids]
    problem = ""
    if [(one.item_id, one.sample) for one in trial.drawn] != wanted:
        problem = f"{len(wanted)} rollouts were asked for, and others came"
    elif not all(0 <= token < known for token in ids):
        problem = "tokens were drawn that the model does not have"
    elif any(ends & set(one.completion_token_ids[:-1]) for one in trial.drawn):
        problem = "a rollout goes on beyond its end"
    text = f"{len(lengths)} rollouts, {rate:,.0f} tokens/s, {np.mean(lengths):.0f} tokens each"
    if problem:
        trial.drawn = []
        return Tried("sampling", False, problem, trial.remedy, numbers)
    return Tried("sampling", True, text, numbers=numbers)


def _warm_up(trial: Trial) -> None:
    """Have kernels chosen and buffers made before the clock runs."""
    engine = TransformersEngine(trial.policy, seed=_SEED, temperature=1.0, max_tokens=2)
    list(engine.sample([SampleRequest("warm", trial.prompts[0], 0, 2)]))


def check_same_again(trial: Trial) -> Tried:
    """The same seed draws the same rollouts."""
    first, second = trial.drawn or trial.draw(), trial.draw()
    same = sum(
        one.completion_token_ids == other.completion_token_ids
        for one, other in zip(first, second, strict=True)
    )
    text = f"{same} of {len(first)} rollouts are the same when they are drawn again"
    remedy = "" if same == len(first) else (
        "runs work, but the same command draws other rollouts here: continue a run rather than "
        "repeat it, and compare by intervals"
    )  # fmt: skip
    return Tried("same again", not remedy, text, remedy, {"same": same, "rollouts": len(first)})


def check_verifying(trial: Trial) -> Tried:
    """Worker processes start and judge, right and wrong answers told apart."""
    pairs = [(completion, answer) for completion, answer, _ in _JUDGED]
    with VerifierPool("math") as pool:
        start = time.monotonic()
        verdicts = [verdict.reward for verdict in pool.judge(pairs)]
        many = [(f"{completion} ({place})", a) for place in range(200) for completion, a in pairs]
        pool.judge(many)
        rate = (len(pairs) + len(many)) / (time.monotonic() - start)
    wanted = [reward for *_, reward in _JUDGED]
    if verdicts != wanted:
        text = f"a right and a wrong answer were judged {verdicts} and not {wanted}"
        return Tried("verifying", False, text, _CPU_REMEDY)
    text = f"a right and a wrong answer are told apart, {rate:,.0f} answers/s"
    return Tried("verifying", True, text, numbers={"answers_per_second": rate})


def check_re_scoring(trial: Trial) -> Tried:
    """Log-probabilities by teacher forcing are those of sampling, and the CPU's in float32."""
    rollouts = trial.rollouts
    lengths = np.array([len(one.completion_token_ids) for one in rollouts])
    found = log_probabilities(trial.policy, rollouts)
    texts, numbers = [], {}
    most = _FLOAT32_NATS if trial.dtype == torch.float32 else _BFLOAT16_NATS
    if trial.drawn and all(one.log_probability is not None for one in trial.drawn):
        drawn = np.array([one.log_probability for one in trial.drawn])
        numbers["from_sampling"] = float(np.max(np.abs(found - drawn) / lengths))
        texts.append(f"{numbers['from_sampling']:.2g} nats a token from those of sampling at most")
    if trial.reference is not trial.policy:
        some = trial.compared
        own, cpu = (log_probabilities(each, some) for each in (trial.policy, trial.reference))
        tokens = np.array([len(one.completion_token_ids) for one in some])
        numbers["from_cpu"] = float(np.max(np.abs(own - cpu) / tokens))
        texts.append(f"{numbers['from_cpu']:.2g} from the CPU's in float32")
    if not texts:
        texts.append("nothing to compare with: sampling gave no log-probabilities")
    passed = bool(numbers) and all(value <= most[name] for name, value in numbers.items())
    text = f"log-probabilities are {', '.join(texts)}" if numbers else texts[0]
    limits = f"{most['from_sampling']:g} from sampling, {most['from_cpu']:g} from the CPU"
    remedy = "" if passed else f"more than {limits} is wrong: {trial.remedy}"
    return Tried("re-scoring", passed, text, remedy, numbers)


def check_gradients(trial: Trial) -> Tried:
    """Gradients of rollouts are those of plain autograd on the CPU in float32."""
    own = trial.features(trial.compared, Adapter(dim=None))
    cosines = _cosines(own, trial.exact)
    sketched = trial.features(trial.compared, Adapter())
    lengths = np.linalg.norm(sketched, axis=1) / np.linalg.norm(own, axis=1)
    rollouts = trial.rollouts[: len(trial.prompts) * trial.samples // 2]
    start = time.monotonic()
    features = trial.features(rollouts, Adapter())
    rate = sum(one.tokens for one in rollouts) / (time.monotonic() - start)
    numbers = {
        "cosine": float(cosines.min()),
        "length": float(np.abs(lengths - 1).max()),
        "tokens_per_second": rate,
    }
    least = 0.9999 if trial.dtype == torch.float32 else 0.95
    passed = bool(
        np.isfinite(features).all() and cosines.min() >= least and np.abs(lengths - 1).max() < 0.15
    )
    text = (
        f"{len(rollouts)} rollouts, {rate:,.0f} tokens/s; cosine with plain autograd on the CPU in "
        f"float32 {cosines.min():.5f} or more, lengths kept within {numbers['length']:.0%}"
    )
    remedy = "" if passed else f"a cosine below {least:g} is wrong: {trial.remedy}"
    return Tried("gradients", passed, text, remedy, numbers)


def check_training_step(trial: Trial) -> Tried:
    """A step of GRPO moves log-probabilities as the gradients say that it will."""
    rollouts = trial.compared
    tokens = np.array([len(one.completion_token_ids) for one in rollouts])
    slopes = -tokens[:, None] * trial.features(rollouts, Adapter(dim=None)).astype(np.float64)
    adapter = TrainedAdapter(trial.policy, Adapter())
    # As if the first half of either prompt's rollouts were right.
    advantages = [1.0 if place % 2 == 0 else -1.0 for place in range(len(rollouts))]
    start = time.monotonic()
    moved = adapter.step(rollouts, advantages, learning_rate=1.0).astype(np.float64)
    seconds = time.monotonic() - start
    expected = slopes @ moved
    # In bfloat16 what is smaller than a rounding step of a layer's output is lost.
    is_exact = trial.dtype == torch.float32
    size = (0.05 if is_exact else 0.2) / np.max(np.abs(expected / tokens))
    adapter.scale(size)
    measured = adapter_effect(trial.policy, adapter, rollouts)
    expected = size * expected
    agreement = float(_cosines(measured[None], expected[None])[0])
    share = float(np.linalg.norm(measured) / np.linalg.norm(expected))
    rises = float(np.dot(measured, advantages))
    low, high = (0.98, 1.02) if is_exact else (0.5, 1.5)
    passed = agreement >= (0.999 if is_exact else 0.95) and low <= share <= high and rises > 0
    text = (
        f"a step of GRPO on a LoRA adapter in {seconds:.1f} s; log-probabilities move as gradients "
        f"say: cosine {agreement:.4f}, {share:.0%} as far"
    )
    numbers = {"cosine": agreement, "size": share, "seconds": seconds}
    return Tried("training step", passed, text, "" if passed else trial.remedy, numbers)


def adapter_effect(
    policy: Policy, adapter: TrainedAdapter, rollouts: Sequence[TokenizedRollout]
) -> NDArray[np.float64]:
    """Change of each log-probability by an adapter, (rollouts,): half of what ±B are apart.

    What is of second order in B cancels.
    """
    found = []
    for factor in (1.0, -1.0):
        adapter.scale(factor)
        with adapter.installed():
            found.append(log_probabilities(policy, rollouts))
    return np.asarray((found[0] - found[1]) / 2)


def check_longest(trial: Trial) -> Tried:
    """How long a rollout a gradient pass can have here: estimated, and on a GPU tried."""
    devices = {each.device for each in trial.policy.model.parameters()}
    # Of several GPUs each has its share of the blocks.
    free = min(map(free_bytes, devices)) * len(devices)
    numbers: dict[str, float] = {"free_bytes": free}
    if trial.model:
        context = trial.policy.context_length
        tokens = longest(trial.policy, free)
        numbers["tokens"] = min(tokens, context)
        texts = [f"{_rounded(tokens):,}, of a context of {context:,}"]
        if tokens >= context:
            texts = [f"{context:,}, its whole context"]
        passed = tokens >= min(1024, context)
    else:
        numbers |= {
            size: longest(policy_of_size(size, trial.dtype), free, with_weights=True)
            for size in SIZES
        }
        fits = [size for size in SIZES if numbers[size]]
        texts = [f"{_rounded(numbers[size]):,} with a {size}" for size in fits]
        texts += [f"none with a {size}" for size in SIZES if size not in fits]
        passed = numbers[SIZES[0]] >= 1024
    text = f"tokens of a rollout that fits into a gradient pass, about: {', '.join(texts)}"
    text += f" ({_name(trial.dtype)}, {free / 1e9:,.3g} GB free)"
    if trial.on_gpu:
        tried, seconds = _try_long(trial, free)
        numbers |= {"tried": tried, "seconds": seconds}
        text += f"; {tried:,} tokens of this model were tried, in {seconds:.1f} s"
    remedy = "" if passed else "free memory, or lower --max-tokens: longer rollouts are left out"
    return Tried("longest", passed, text, remedy, numbers)


def longest(policy: Policy, free: int, *, with_weights: bool = False) -> int:
    """Tokens of the longest rollout that a gradient pass can hold, blocks recomputed; 0 for none.

    Args:
        policy: its shape counts, not its weights.
        free: bytes of memory.
        with_weights: whether its weights must go into them as well.
    """
    weights = sum(each.numel() for each in policy.model.parameters()) * policy.dtype.itemsize
    left = 0.9 * free - (weights if with_weights else 0) - min(_HEAD_BYTES, free // 4)
    return max(0, int(left // recomputed_bytes(policy)))


def _try_long(trial: Trial, free: int) -> tuple[int, float]:
    """Differentiate a rollout that is as long as fits, or as the time allows; tokens, seconds."""
    policy = trial.policy
    most = min(longest(policy, free), policy.context_length)
    tokens, probe = min(2048, most), GradientProbe(policy, kept_tokens=1)
    rng = np.random.default_rng(_SEED)
    ids = rng.integers(16, policy.model.get_input_embeddings().weight.shape[0], size=most).tolist()
    done = (0, 0.0)
    while tokens > done[0]:
        start = time.monotonic()
        found = list(probe.gradients([TokenizedRollout(ids[:16], ids[16:tokens])]))
        if not found:
            break
        done = tokens, time.monotonic() - start
        # Attention makes twice the length take up to four times as long.
        if 5 * done[1] > _TRIED_SECONDS:
            break
        tokens = min(most, 2 * tokens)
    return done


CHECKS: dict[str, Callable[[Trial], Tried]] = dict(
    zip(
        NAMES,
        (
            *(check_model, check_sampling, check_same_again, check_verifying),
            *(check_re_scoring, check_gradients, check_training_step, check_longest),
        ),
        strict=True,
    )
)
"""By name, in order."""


# --- Running them ----------------------------------------------------------------------------


def run_checks(
    trial: Trial,
    names: Sequence[str],
    checks: dict[str, Callable[[Trial], Tried]] = CHECKS,
    begins: Callable[[str], None] = lambda name: None,
) -> Iterator[Tried]:
    """Run checks in turn; one that raises has failed, and the others go on."""
    for name in names:
        begins(name)
        try:
            yield checks[name](trial)
        except Exception as error:  # noqa: BLE001 (whatever a library raises is the finding)
            yield Tried(name, False, _reason(error), _remedy(trial, error))
            # The error holds what the check had made.
            del error
            gc.collect()


def _reason(error: Exception) -> str:
    if isinstance(error, CurateError):
        return one_line(str(error))
    first = next(iter(str(error).strip().splitlines()), "")
    return one_line(f"{type(error).__name__}: {first}")


def _remedy(trial: Trial, error: Exception) -> str:
    if is_out_of_memory(error):
        return "free memory (on a GPU nvidia-smi says who has it), or try a smaller model"
    if isinstance(error, CurateError):
        return "do as it says, then try again"
    return trial.remedy


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = np.einsum("rd,rd->r", one, other)
    return np.asarray(np.divide(products, lengths, out=np.zeros(len(one)), where=lengths > 0))


def _rounded(number: float) -> int:
    """A number to two digits."""
    return int(float(f"{number:.2g}"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(words: str) -> None:
    """Run the checks that are asked for, and print each as a line of JSON."""
    asked = json.loads(words)
    out, sys.stdout = sys.stdout, sys.stderr  # What libraries print is none of it.

    def write(said: dict[str, Any]) -> None:
        print(MARK + json.dumps(said), file=out, flush=True)

    if not asked["model"]:
        # So small a model gains nothing from more, and on a busy machine they would wait for each
        # other, layer by layer.
        torch.set_num_threads(1)
    trial = Trial(asked["model"], trust_remote_code=asked["trust_remote_code"])
    for tried in run_checks(trial, asked["names"], begins=lambda name: write({"begins": name})):
        write(asdict(tried))
        if not tried.passed and trial.on_gpu:
            # After some errors a GPU fails at everything: this ends us, and another goes on.
            torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
