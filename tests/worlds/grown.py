"""A grown world: a small Llama pretrained on many skills, and items out of its own failures.

The policy is taught 15 to 25 skills (`tests/worlds/grown_skills.py`) of unequal share and unequal
label noise, for a minute or two on one thread. Noise gives a question the answer of another
question of its skill, so that a skill can be known well and shown rarely. Nothing is planted about
learnability: items are chosen by the policy's pass probability alone.

A skill answers directly, when exactly one completion is right and its pass probability is read off
by teacher forcing, or after lines of working, when many completions are right (the answer is the
text after `####`) and its pass probability is estimated from samples.

The world depends on its settings alone, on one kind of machine.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from curate.files import write_atomically
from tests.worlds.grown_skills import MARK, SKILLS, SYMBOLS, Question, draw_question

HARD_RANGE = (0.001, 0.1)
"""Pass probabilities of the hard items."""

Tokens = tuple[int, ...]

_VOCABULARY = ["<pad>", "<eos>", "<unk>", *SYMBOLS]
_ID = {symbol: i for i, symbol in enumerate(_VOCABULARY)}
_PAD, EOS = _ID["<pad>"], _ID["<eos>"]
IGNORED = -100
_POOL = 2_000
"""Questions of a skill that pretraining draws from, with repetition."""
_PROMPTS_AT_ONCE = 512
_SHARES = {"near_zero": 0.15, "hard": 0.6, "easy": 0.25}
_BINS = {"near_zero": 1, "hard": 8, "easy": 4}
"""Classes of items; within one, bins of equal width in log p, as even as the candidates allow."""


@dataclass(frozen=True)
class WorldSettings:
    """What a world is made of.

    Attributes:
        skills: names out of `grown_skills.SKILLS`.
        working_skills: those of them that write lines of working before the answer.
        width, layers: of the Llama; heads have 16 dimensions at least.
        steps, batch: of pretraining, about 0.15 s a step of 192 examples.
        learning_rate: of pretraining, with a warm-up of 50 steps and a linear fall to a tenth.
        noise: label noise of each skill is drawn uniformly from 0 to this.
        share_spread: standard deviation of the log share of a skill.
        items: how many are chosen.
        largest_skill: share of them that one skill may have at most.
        candidates: questions of each skill that items are chosen from; a quarter as many of the
            skills with working.
        working_samples: completions of each candidate with working.
        seed: of everything.
    """

    skills: tuple[str, ...]
    working_skills: tuple[str, ...] = ()
    width: int = 96
    layers: int = 3
    steps: int = 600
    batch: int = 128
    learning_rate: float = 2e-3
    noise: float = 0.9
    share_spread: float = 0.8
    items: int = 400
    largest_skill: float = 1.0
    candidates: int = 300
    working_samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the names."""
        unknown = set(self.skills) - set(SKILLS)
        if unknown or not set(self.working_skills) <= set(self.skills):
            raise ValueError(f"unknown skills: {sorted(unknown) or self.working_skills}")


@dataclass(frozen=True)
class GrownWorld:
    """Where a world lies; arrays are (items,), in the file's order."""

    model: Path
    """A Hugging Face folder."""
    items: Path
    """JSONL with prompt, answer and skill; the verifier `exact` judges it, without instruction."""
    questions: tuple[Question, ...]
    pass_probabilities: NDArray[np.float64]
    """At temperature 1: exact for direct answers, else correct ones of `working_samples`."""
    is_exact: NDArray[np.bool_]
    max_tokens: int
    """Enough for every correct completion as it is taught."""


def grow_world(folder: Path, settings: WorldSettings) -> GrownWorld:
    """Pretrain the policy and choose the items.

    Writes `folder/model`, `folder/items.jsonl` and `folder/world.json`: the settings, and of each
    skill its share, noise and mean pass probability. Works on one thread: sums are then the same on
    every machine with this instruction set.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _grow(folder, settings)
    finally:
        torch.set_num_threads(threads)


def _grow(folder: Path, settings: WorldSettings) -> GrownWorld:
    rng = np.random.default_rng(settings.seed)
    shares = np.exp(rng.normal(0, settings.share_spread, size=len(settings.skills)))
    shares /= shares.sum()
    noise = rng.uniform(0, settings.noise, size=len(settings.skills))
    model = new_model(settings)
    pools = [[draw_question(skill, rng) for _ in range(_POOL)] for skill in settings.skills]
    loss = _pretrain(model, settings, pools, shares, noise, rng)

    candidates = [
        question for skill in settings.skills for question in _candidates(settings, skill, rng)
    ]
    is_exact = np.array([q.skill not in settings.working_skills for q in candidates])
    p = np.zeros(len(candidates))
    p[is_exact] = pass_probability(model, [candidates[i] for i in np.flatnonzero(is_exact)])
    p[~is_exact] = sampled_pass_rate(
        model,
        [candidates[i] for i in np.flatnonzero(~is_exact)],
        settings.working_samples,
        max_tokens=_longest(candidates, settings),
        seed=settings.seed,
    )
    skills = np.array([question.skill for question in candidates])
    chosen = _choose(p, skills, settings, rng)

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    questions = tuple(candidates[i] for i in chosen)
    items = folder / "items.jsonl"
    write_questions(items, questions)
    max_tokens = _longest(candidates, settings)
    about = {
        "settings": asdict(settings),
        "final_loss": loss,
        "max_tokens": max_tokens,
        "skills": {
            skill: {
                "share": round(float(share), 4),
                "noise": round(float(noisy), 3),
                "mean_pass_probability": round(float(p[skills == skill].mean()), 4),
                "items": int((skills[chosen] == skill).sum()),
            }
            for skill, share, noisy in zip(settings.skills, shares, noise, strict=True)
        },
    }
    (folder / "world.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return GrownWorld(
        model=folder / "model",
        items=items,
        questions=questions,
        pass_probabilities=p[chosen],
        is_exact=is_exact[chosen],
        max_tokens=max_tokens,
    )


def write_questions(file: Path, questions: Sequence[Question]) -> None:
    """Write a dataset of questions, JSONL."""
    rows = [{"prompt": q.prompt, "answer": q.answer, "skill": q.skill} for q in questions]
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def read_questions(file: Path) -> list[Question]:
    """What `write_questions` wrote, without the lines of working."""
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [Question(row["skill"], row["prompt"], row["answer"], ()) for row in rows]


def other_questions(
    model: LlamaForCausalLM,
    settings: WorldSettings,
    seed: int,
    without: Sequence[Question],
) -> tuple[Question, ...]:
    """Draw more questions of a grown world, chosen by pass probability as its items are.

    Args:
        model: the policy of the world.
        settings: of the world; its skills answer directly.
        seed: of these questions.
        without: questions that are not to come again.

    Raises:
        ValueError: a skill writes lines of working.
    """
    if settings.working_skills:
        raise ValueError(f"{settings.working_skills} write working: pass rates are not exact")
    rng = np.random.default_rng(seed)
    known = {question.prompt for question in without}
    candidates = [
        question
        for skill in settings.skills
        for question in _candidates(settings, skill, rng)
        if question.prompt not in known
    ]
    skills = np.array([question.skill for question in candidates])
    chosen = _choose(pass_probability(model, candidates), skills, settings, rng)
    return tuple(candidates[i] for i in chosen)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a symbol."""
    made = Tokenizer(models.WordLevel(_ID, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def new_model(settings: WorldSettings) -> LlamaForCausalLM:
    """The policy before any training."""
    heads = 4 if settings.width >= 64 else 2
    config = LlamaConfig(
        vocab_size=len(_VOCABULARY),
        hidden_size=settings.width,
        intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=128,
        eos_token_id=EOS,
        pad_token_id=_PAD,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


# --- Pretraining --------------------------------------------------------------------------------


def _pretrain(
    model: LlamaForCausalLM,
    settings: WorldSettings,
    pools: Sequence[Sequence[Question]],
    shares: NDArray[np.float64],
    noise: NDArray[np.float64],
    rng: np.random.Generator,
) -> float:
    """Train on draws of all skills; return the mean loss of the last 20 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    losses = []
    for step in range(settings.steps):
        rows = []
        for skill in rng.choice(len(pools), size=settings.batch, p=shares):
            question, other = (pools[skill][i] for i in rng.integers(_POOL, size=2))
            answer = other.answer if rng.random() < noise[skill] else question.answer
            has_working = question.skill in settings.working_skills
            working = question.workings[rng.integers(len(question.workings))] if has_working else ""
            rows.append((prompt_ids(question), completion_ids(answer, working)))
        loss = completion_loss(model, rows)
        falling = 1 - 0.9 * max(0.0, step - 50) / max(1, settings.steps - 50)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min((step + 1) / 50, falling)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-20:]))


def prompt_ids(question: Question) -> Tokens:
    """What a question is to the policy."""
    return tuple(_ID[symbol] for symbol in question.prompt.split())


def completion_ids(answer: str, working: str = "") -> Tokens:
    """How an answer is written, and its end."""
    text = f"{working} {MARK} {answer}" if working else answer
    return (*(_ID[symbol] for symbol in text.split()), EOS)


def padded(rows: Sequence[tuple[Tokens, Tokens]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and completions as token ids, and completions as labels; both (rows, longest)."""
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = np.full((len(rows), longest), _PAD)
    labels = np.full((len(rows), longest), IGNORED)
    for i, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[i, :end] = prompt + completion
        labels[i, len(prompt) : end] = completion
    return torch.from_numpy(ids), torch.from_numpy(labels)


def completion_loss(model: LlamaForCausalLM, rows: Sequence[tuple[Tokens, Tokens]]) -> torch.Tensor:
    """Mean over the completions' tokens. What is right of a row's end is not attended to."""
    ids, labels = padded(rows)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED
    )


# --- Pass probabilities ---------------------------------------------------------------------------


@torch.no_grad()
def pass_probability(model: LlamaForCausalLM, questions: Sequence[Question]) -> NDArray[np.float64]:
    """Probability that the policy gives the answer and stops, at temperature 1, (questions,)."""
    found = []
    for start in range(0, len(questions), _PROMPTS_AT_ONCE):
        part = questions[start : start + _PROMPTS_AT_ONCE]
        ids, labels = padded([(prompt_ids(q), completion_ids(q.answer)) for q in part])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.double()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
        )
        found.append((-losses.sum(dim=1)).exp().numpy())
    return np.concatenate([*found, np.empty(0)])


@torch.no_grad()
def sampled_pass_rate(
    model: LlamaForCausalLM,
    questions: Sequence[Question],
    samples: int,
    *,
    max_tokens: int,
    seed: int,
) -> NDArray[np.float64]:
    """Share of sampled completions whose text after the mark is the answer, (questions,)."""
    rates = np.zeros(len(questions))
    prompts = [prompt_ids(question) for question in questions]
    # Prompts of one length need no padding.
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    at_once = max(1, 4096 // samples)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for indices in by_length.values():
            for start in range(0, len(indices), at_once):
                part = indices[start : start + at_once]
                drawn = model.generate(
                    torch.tensor([prompts[i] for i in part]),
                    attention_mask=torch.ones(len(part), len(prompts[part[0]]), dtype=torch.long),
                    do_sample=True,
                    top_k=0,
                    num_return_sequences=samples,
                    max_new_tokens=max_tokens,
                )[:, len(prompts[part[0]]) :]
                for i, rows in zip(part, drawn.view(len(part), samples, -1).tolist(), strict=True):
                    rates[i] = np.mean([_is_right(row, questions[i].answer) for row in rows])
    return rates


def _is_right(completion: list[int], answer: str) -> bool:
    if EOS not in completion:
        return False
    text = " ".join(_VOCABULARY[i] for i in completion[: completion.index(EOS)])
    return text.rpartition(MARK)[2].strip() == answer


# --- Items ----------------------------------------------------------------------------------------


def _candidates(settings: WorldSettings, skill: str, rng: np.random.Generator) -> list[Question]:
    """Different questions of a skill, as many as wanted or as it has."""
    wanted = settings.candidates // (4 if skill in settings.working_skills else 1)
    found: dict[str, Question] = {}
    for _ in range(4 * wanted):
        question = draw_question(skill, rng)
        found.setdefault(question.prompt, question)
    return list(found.values())[:wanted]


def _longest(questions: Sequence[Question], settings: WorldSettings) -> int:
    """Tokens of the longest correct completion."""
    return max(
        len(completion_ids(q.answer, working))
        for q in questions
        for working in (q.workings if q.skill in settings.working_skills else ("",))
    )


def _choose(
    p: NDArray[np.float64],
    skills: NDArray[np.str_],
    settings: WorldSettings,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Indices of the items, in random order: by class and bin of log p, skills taking turns."""
    low, high = HARD_RANGE
    edges = {
        "near_zero": np.array([-np.inf, np.log(low)]),
        "hard": np.linspace(np.log(low), np.log(high), _BINS["hard"] + 1),
        "easy": np.linspace(np.log(high), 1e-9, _BINS["easy"] + 1),
    }
    log_p = np.log(np.maximum(p, 1e-300))
    most = round(settings.largest_skill * settings.items)
    chosen: list[int] = []
    for name, share in _SHARES.items():
        bins = [
            _taking_turns(np.flatnonzero((log_p >= left) & (log_p < right)), skills, rng)
            for left, right in zip(edges[name], edges[name][1:], strict=False)
        ]
        # What one bin lacks is taken from those that have more.
        places = sorted((place, index) for queue in bins for place, index in enumerate(queue))
        end = len(chosen) + round(share * settings.items)
        for _, index in places:
            if len(chosen) < end and (skills[chosen] == skills[index]).sum() < most:
                chosen.append(index)
    return np.array(rng.permutation(chosen))


def _taking_turns(
    indices: NDArray[np.intp], skills: NDArray[np.str_], rng: np.random.Generator
) -> list[int]:
    """Order indices so that every skill has its first before any has its second."""
    turns: dict[str, int] = {}
    keyed = []
    for index in rng.permutation(indices).tolist():
        turn = turns[skills[index]] = turns.get(skills[index], 0) + 1
        keyed.append((turn, index))
    return [index for _, index in sorted(keyed, key=lambda pair: pair[0])]
