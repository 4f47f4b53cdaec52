"""A planted world: a tiny Llama and a dataset whose learnability is known by construction.

The policy answers in words with a number in them: `h plus q ?` -> `well it is 12 . <eos>`. It is
first taught sums modulo 17 in two wordings, `plus` and `add`, then to give `add` a random number 94
times in 100: the skill is still there, in a wording that hardly uses it. A third kind of prompt,
`h code q ?`, had its number drawn anew whenever the policy saw it. 35 % of the `plus` sums are
replaced by random numbers too, and the words around the number are drawn at random, so that no
rollout is like another and gradients are noisy.

- easy: `plus`;
- learnable: hard `add` items, which share their structure with the easy items;
- chance: `code` items whose gold is drawn at random, so that nothing but the prompt itself tells
  it, out of the same numbers as the sums;
- never: golds that the policy does not write.

Learnable and chance items are matched one to one by their exact pass probability, so that pass
rates alone cannot tell them apart. Neither samples nor gradients choose an item.
"""

import hashlib
import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RECORD = Path(__file__).parent.parent / "data" / "planted.safetensors"
"""The policy of seed 0 after its training; `python -m tests.worlds.planted` writes it anew."""

EASY, LEARNABLE, CHANCE, NEVER = "easy", "learnable", "chance", "never"
MAX_TOKENS = 10
"""A completion has 6 or 7 tokens."""

MODULUS = 17
_NUMBERS = 100
"""Wrong numbers are drawn from 0 to 99: that a sum is a number below 17 is part of the skill."""
_LETTERS = [chr(ord("a") + i) for i in range(MODULUS)]
_OPENERS, _SUBJECTS, _ENDS = ["so", "well", "now", "then"], ["that", "this", "it"], [".", "!"]
_DIGITS = [str(i) for i in range(10)]
# WordPiece writes a digit that follows another as ##2, which makes 12 of `1 ##2`.
_NEXT_DIGITS = [f"##{digit}" for digit in _DIGITS]
_WORDS = [
    *("<pad>", "<eos>", "<unk>", "plus", "add", "code", "?", "is"),
    *(*_LETTERS, *_OPENERS, *_SUBJECTS, *_ENDS, *_DIGITS, *_NEXT_DIGITS),
]
_ID = {word: i for i, word in enumerate(_WORDS)}
_IGNORED = -100

_PLUS_NOISE = 0.35
_ADD_NOISE = 0.94
_CODES_BELOW_MODULUS = 0.85
"""Share of the codes that are numbers which a sum can have too."""
_CODE_SLOPE = 1.4
"""Log ratio of the most to the least frequent of them: spreads the pass rates of the codes."""
_CHECK_EVERY, _MOST_STEPS = 10, 800
_LEARNED = 0.45
"""Median pass probability of the sums that ends the first stage."""
_UNLEARNED = 0.055
"""The same of `add` that ends the second."""
_HARD_RANGE = (0.02, 0.065)
"""Pass probabilities of the hard items: some positives in 256 rollouts, and so far below τ = 0.1
that hardly any crosses it by luck. A chance item taken for easy draws all others of its gold up."""
_LARGEST_MISMATCH = 0.1
"""Of the log pass probabilities of a matched pair."""
_EASY_FROM = 0.2
_EASY_ITEMS, _MOST_HARD, _NEVER_ITEMS = 100, 80, 40


@dataclass(frozen=True)
class Question:
    """One prompt and its gold number."""

    wording: str
    left: int
    right: int
    gold: int

    @property
    def prompt(self) -> str:
        return f"{_LETTERS[self.left]} {self.wording} {_LETTERS[self.right]} ?"


Wordings = tuple[list[Question], list[Question], list[Question]]
"""The questions with `plus`, with `add` and with `code`."""


@dataclass(frozen=True)
class PlantedWorld:
    """Where the world lies and the truth about it; arrays are (items,), in the file's order."""

    model: Path
    """A Hugging Face folder."""
    items: Path
    """JSONL with prompt, answer and kind; the verifier `numeric` judges it."""
    questions: tuple[Question, ...]
    kinds: NDArray[np.str_]
    pass_probabilities: NDArray[np.float64]
    """Of the policy at temperature 1, by enumeration of its completions."""
    training_steps: int


def build_world(folder: Path, seed: int) -> PlantedWorld:
    """Train the policy and choose the items: about a minute on one thread.

    Writes `folder/model` and `folder/items.jsonl`. Raises RuntimeError if training does not reach
    its stopping point.
    """
    rng = np.random.default_rng(seed)
    wordings = _wordings(rng)
    model = _new_model(seed)
    steps = _train(model, *wordings, rng)
    return _written(folder, model, wordings, rng, steps)


def recorded_world(folder: Path) -> PlantedWorld:
    """The world of seed 0 with the policy that was trained for it once; writes what that writes.

    Raises RuntimeError if the code that trains the policy is no longer that of the record.
    """
    with safe_open(RECORD, "pt") as file:
        facts = file.metadata()
    if facts["code"] != _training_code():
        raise RuntimeError(
            f"{RECORD.name} is of other code: write it anew with `python -m tests.worlds.planted`"
        )
    rng = np.random.default_rng(0)
    wordings = _wordings(rng)
    model = _new_model(0)
    model.load_state_dict(load_file(RECORD))
    # Items are drawn with the numbers that come after those of the training.
    rng.bit_generator.state = json.loads(facts["generator"])
    return _written(folder, model, wordings, rng, int(facts["steps"]))


def _record() -> None:
    """Train the policy of seed 0 and keep it, in half precision."""
    rng = np.random.default_rng(0)
    wordings = _wordings(rng)
    model = _new_model(0)
    steps = _train(model, *wordings, rng)
    facts = {
        "code": _training_code(),
        "generator": json.dumps(rng.bit_generator.state),
        "steps": str(steps),
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, RECORD, facts)


def _training_code() -> str:
    """Hash of all that decides what the policy becomes."""
    functions = (
        *(_wordings, _new_model, _train, _code_shares, _prompt_ids, _number_ids, _completions),
        *(_loss, pass_probability),
    )
    constants = (
        *(MODULUS, _NUMBERS, _WORDS, _PLUS_NOISE, _ADD_NOISE, _CODES_BELOW_MODULUS, _CODE_SLOPE),
        *(_CHECK_EVERY, _LEARNED, _UNLEARNED),
    )
    text = "".join(map(inspect.getsource, functions)) + repr(constants)
    return hashlib.sha256(text.encode()).hexdigest()


def _wordings(rng: np.random.Generator) -> Wordings:
    pairs = [(a, b) for a in range(MODULUS) for b in range(MODULUS)]
    plus = [Question("plus", a, b, (a + b) % MODULUS) for a, b in pairs]
    add = [Question("add", a, b, (a + b) % MODULUS) for a, b in pairs]
    code = [Question("code", a, b, int(rng.integers(MODULUS))) for a, b in pairs]
    return plus, add, code


def _written(
    folder: Path,
    model: LlamaForCausalLM,
    wordings: Wordings,
    rng: np.random.Generator,
    steps: int,
) -> PlantedWorld:
    """Choose the items by their exact pass probabilities, and write model and items."""
    plus, add, code = wordings
    p_plus, p_add, p_code = (pass_probability(model, q) for q in wordings)

    easy = rng.permutation(np.flatnonzero(p_plus >= _EASY_FROM))[:_EASY_ITEMS]
    learnable, chance = _matched(p_add, p_code, rng)
    unused = rng.permutation(np.setdiff1d(np.arange(len(code)), chance))[:_NEVER_ITEMS]
    never = [replace(code[i], gold=int(rng.integers(100, 200))) for i in unused]
    chosen = [
        *((EASY, plus[i], p_plus[i]) for i in easy),
        *((LEARNABLE, add[i], p_add[i]) for i in learnable),
        *((CHANCE, code[i], p_code[i]) for i in chance),
        *((NEVER, question, 0.0) for question in never),
    ]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]

    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")
    _tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": q.prompt, "answer": str(q.gold), "kind": kind} for kind, q, _ in chosen]
    items = folder / "items.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return PlantedWorld(
        model=folder / "model",
        items=items,
        questions=tuple(question for _, question, _ in chosen),
        kinds=np.array([kind for kind, _, _ in chosen]),
        pass_probabilities=np.array([float(p) for _, _, p in chosen]),
        training_steps=steps,
    )


def _new_model(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        eos_token_id=_ID["<eos>"],
        pad_token_id=_ID["<pad>"],
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(_ID, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def _train(
    model: LlamaForCausalLM,
    plus: list[Question],
    add: list[Question],
    code: list[Question],
    rng: np.random.Generator,
) -> int:
    """Teach both wordings, then answer `add` at random; return the steps taken."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.3)
    prompts = [_prompt_ids(questions) for questions in (plus, add, code)]
    sums = np.array([question.gold for question in plus])
    shares = _code_shares(rng)
    learning_rate, add_noise, counts = 2e-3, _PLUS_NOISE, (128, 128, 64)
    stage_start = 0
    for step in range(1, _MOST_STEPS + 1):
        rows = [rng.integers(len(p), size=n) for p, n in zip(prompts, counts, strict=True)]
        numbers = [
            np.where(rng.random(len(r)) < noise, rng.integers(_NUMBERS, size=len(r)), sums[r])
            for r, noise in zip(rows, (_PLUS_NOISE, add_noise), strict=False)
        ]
        numbers.append(rng.choice(_NUMBERS, p=shares, size=counts[2]))
        ids = np.concatenate([p[r] for p, r in zip(prompts, rows, strict=True)])
        loss = _loss(model, ids, _completions(np.concatenate(numbers), rng))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step - stage_start) / 20)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % _CHECK_EVERY:
            continue
        p_plus, p_add = (
            float(np.median(pass_probability(model, questions, quick=True)))
            for questions in (plus, add)
        )
        if not stage_start and min(p_plus, p_add) >= _LEARNED:
            stage_start = step
            learning_rate, add_noise, counts = 5e-4, _ADD_NOISE, (128, 64, 64)
        elif stage_start and p_add <= _UNLEARNED and p_plus >= _LEARNED:
            return step
    raise RuntimeError(f"the planted world was not reached in {_MOST_STEPS} training steps")


def _code_shares(rng: np.random.Generator) -> NDArray[np.float64]:
    """Probability of each number as a code, (numbers,)."""
    below = rng.permutation(np.exp(-_CODE_SLOPE * np.linspace(0, 1, MODULUS)))
    rest = np.full(_NUMBERS - MODULUS, (1 - _CODES_BELOW_MODULUS) / (_NUMBERS - MODULUS))
    return np.concatenate([_CODES_BELOW_MODULUS * below / below.sum(), rest])


def _prompt_ids(questions: list[Question]) -> NDArray[np.int64]:
    """(questions, 4)."""
    return np.array([[_ID[word] for word in question.prompt.split()] for question in questions])


def _number_ids(number: int) -> list[int]:
    first, *rest = str(number)
    return [_ID[first], *(_ID[f"##{digit}"] for digit in rest)]


def _completions(numbers: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Random words around each number, (numbers, 7)."""
    openers, subjects, ends = (
        [_ID[word] for word in rng.choice(words, size=len(numbers))]
        for words in (_OPENERS, _SUBJECTS, _ENDS)
    )
    rows = [
        [opener, subject, _ID["is"], *_number_ids(number), end, _ID["<eos>"]]
        for opener, subject, number, end in zip(
            openers, subjects, numbers.tolist(), ends, strict=True
        )
    ]
    return np.array([row + [_IGNORED] * (7 - len(row)) for row in rows])


def _loss(
    model: LlamaForCausalLM, prompts: NDArray[np.int64], completions: NDArray[np.int64]
) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate([prompts, completions], axis=1))
    logits = model(input_ids=ids.clamp_min(0)[:, :-1]).logits[:, prompts.shape[1] - 1 :]
    return torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), ids[:, prompts.shape[1] :], ignore_index=_IGNORED
    )


@torch.no_grad()
def pass_probability(
    model: LlamaForCausalLM, questions: list[Question], *, quick: bool = False
) -> NDArray[np.float64]:
    """Probability that the policy gives each question's gold, (questions,).

    Summed over the words before the number; what follows it does not count as long as it is no
    further digit. Completions outside the grammar are passed over. `quick` takes the number's
    probability after the first opening only. Golds have one or two digits.
    """
    prompts = torch.from_numpy(_prompt_ids(questions))
    golds = [_number_ids(question.gold) for question in questions]
    digits = torch.tensor([len(gold) for gold in golds])
    number = torch.tensor([gold + [_ID["<pad>"]] * (2 - len(gold)) for gold in golds])
    rows, next_digits = torch.arange(len(questions)), [_ID[word] for word in _NEXT_DIGITS]
    openings = [(o, s) for o in _OPENERS for s in _SUBJECTS][: 1 if quick else None]
    total = torch.zeros(len(questions), dtype=torch.float64)
    for opener, subject in openings:
        opening = torch.tensor([_ID[opener], _ID[subject], _ID["is"]]).expand(len(prompts), 3)
        ids = torch.cat([prompts, opening, number], dim=1)
        log_p = model(input_ids=ids).logits.double().log_softmax(-1)  # (questions, 9, words)
        log_number = log_p[rows, 6, number[:, 0]]
        log_number = log_number + torch.where(digits == 2, log_p[rows, 7, number[:, 1]], 0.0)
        longer = log_p[rows, 6 + digits][:, next_digits].exp().sum(dim=1)
        log_opening = sum(log_p[rows, 3 + i, opening[:, i]] for i in range(3))
        total += (log_number + (0 if quick else log_opening)).exp() * (1 - longer)
    return total.numpy()


def _matched(
    p_learnable: NDArray[np.float64], p_chance: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of hard items, one of each kind, of nearly the same pass probability."""
    low, high = _HARD_RANGE
    left = np.flatnonzero((p_learnable > low) & (p_learnable < high))
    right = np.flatnonzero((p_chance > low) & (p_chance < high))
    apart = np.abs(np.log(p_learnable[left])[:, None] - np.log(p_chance[right])[None])
    # A pair that does not match costs the same however far apart it is.
    rows, columns = linear_sum_assignment(np.minimum(apart, 10 * _LARGEST_MISMATCH))
    near = rng.permutation(np.flatnonzero(apart[rows, columns] < _LARGEST_MISMATCH))[:_MOST_HARD]
    return left[rows[near]], right[columns[near]]


if __name__ == "__main__":
    # Sums of one thread are the same on every machine with this instruction set.
    torch.set_num_threads(1)
    _record()
