"""The math verifier on 20,480 real completions, and on numbers and texts drawn at random.

`data/completions.parquet` holds rollouts of SmolLM2-135M-Instruct on examples/arithmetic.jsonl,
at temperature 1, those cut at 32 tokens included, with their verdicts.
"""

import random
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from probes.verifiers.math import judge_math
from probes.verifiers.pool import VerifierPool
from probes.verifiers.verdict import Verdict

COMPLETIONS = Path(__file__).parent / "data" / "completions.parquet"

Pair = tuple[str, str]


def test_every_real_completion_keeps_its_verdict() -> None:
    rows = pq.read_table(COMPLETIONS).to_pylist()
    assert len(rows) >= 20_000
    with VerifierPool("math", workers=1, seconds=30) as pool:
        verdicts = pool.judge([(row["completion"], row["answer"]) for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
        read = (verdict.reward, verdict.verdict, verdict.answer_found)
        assert read == (row["reward"], row["verdict"], row["answer_found"]), row


def forms(value: Fraction) -> list[str]:
    """Ways to write a number, none of them rounded."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(size, 1)
    written = [f"{value}", rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"]
    if rest and whole:
        written += [f"{sign}{whole} {rest}", rf"{sign}{whole}\frac{{{rest.numerator}}}"
                    rf"{{{rest.denominator}}}"]  # fmt: skip
    if 10**6 % size.denominator == 0:
        decimal = f"{float(size):.6f}".rstrip("0").rstrip(".")
        written += [sign + decimal, f"{sign}{float(size) / 1000:.12f}".rstrip("0") + "e3"]
        written += [rf"{sign}{float(size) / 10:.9f} \times 10^{{1}}", f"{100 * value}\\%"]
    if rest == 0:
        written += [f"{int(value):,}", f"{int(value)}.0", f"{int(value)} apples", f"x = {value}"]
    return written


def test_numbers_are_equal_in_all_their_forms_and_to_no_other_number() -> None:
    generator = random.Random(1)
    for _ in range(300):
        value = Fraction(generator.randint(-3000, 3000), generator.choice([1, 1, 2, 3, 7, 8, 50]))
        other = value + Fraction(generator.choice([-1, 1]), generator.choice([1, 2, 100, 9999]))
        for gold in forms(value):
            if gold.endswith("%"):  # 50% equals 0.5 as well as 50
                continue
            for form in forms(value):
                if form.endswith("%") and gold.endswith("apples"):
                    continue
                assert judge_math(rf"\boxed{{{form}}}", gold).reward == 1, (gold, form)
            for form in forms(other):
                if not form.endswith("%"):
                    assert judge_math(rf"\boxed{{{form}}}", gold).reward == 0, (gold, form)


PIECES = [
    *("1", "2", "5", "7", "8", "10", "56", "0", "07", "0.5", ".5", "5.", "1,000", "1 000", "-0"),
    *("50", "99.9999999", "1/2", "2/4", "1e3", "٣", "-", "+", "*", "/", "**", "^", "×", "÷", "("),
    *(")", "=", ".", ",", "%", " percent", " ", " ", " ", "\n", "  ", "$", "[", "]", "\\", "x"),
    *("a", "answer", "Answer: ", "The final answer is ", "anſwer ", " I hope", "so ", "{", "}"),
    *(r"\frac{1}{2}", r"\boxed{", r"\(", r"\)", " [word] ", "#### ", "cm", " apples", "²", "!"),
    *(":", "<answer>", "</answer>", "<think>", "</think>", r"\pm", r"\le", "½", "√", r"\text{"),
]
GOLDS = [
    *("56", "5", "0", "-5", "1/2", "0.5", "50", r"50\%", "5,6", "x=5", "(3,4)", "Monday", "3:2"),
    *("10_2", "5 cm", "1000", "-1/2", "1.5", r"\sqrt{2}", "x", "0.333333", "8!", "[1,2]", "20:00"),
]


@pytest.mark.parametrize("seed", range(4))
def test_any_text_has_a_verdict(seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(500):
        text = "".join(generator.choices(PIECES, k=generator.randint(1, 9)))
        if generator.random() < 0.3:
            text = rf"\boxed{{{text}}}"
        verdict = judge_math(text, generator.choice(GOLDS))
        assert isinstance(verdict, Verdict)
        assert verdict.verdict in ("correct", "wrong", "no_answer"), text
        assert (verdict.reward == 1) == (verdict.verdict == "correct")
        assert (verdict.answer_found is None) == (verdict.verdict == "no_answer"), text
