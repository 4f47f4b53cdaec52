"""The verifiers as pure functions: what each finds in a completion, accepts, and refuses."""

import time
from pathlib import Path

import pytest

from curate.errors import UsageError
from probes.verifiers.load import Verdict, load_verifier


def boxed(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$."


MATH_RIGHT = [
    ("72", "72"),
    ("1/2", "0.5"),
    ("0.5", r"\frac{1}{2}"),
    ("1/2", r"\frac12"),
    ("1/3", "0.333333"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("0.5", r"50\%"),
    ("1000", "1,000"),
    ("1,000", "1000"),
    ("1080", r"1\,080"),
    ("10 000", "10000"),
    (r"\$5", "5"),
    ("5", r"\$5"),
    ("$5$", "5"),
    (r"\(5\)", "5"),
    (r"5\text{ cm}", "5"),
    (r"5\text{ cm}", "5 cm"),
    ("5", r"5\text{ cm}^2"),
    ("5", "5 square feet"),
    ("12", "12 red apples"),
    ("3", "3 dollars"),
    ("6", r"6\text{ ways}"),
    ("3c", "3c"),
    (r"90^\circ", "90"),
    ("90°", r"90^\circ"),
    ("(3,4)", "(3, 4)"),
    ("1, 2", "2,1"),
    (r"[2,\infty)", r"[2, \infty)"),
    (r"x \ge 2", r"[2,\infty)"),
    (r"5\sqrt{2}", r"\sqrt{50}"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("3:2", "3:2"),
    ("10_2", "10_{2}"),
    ("10_2", "10"),
    ("AA6_{11}", "AA6"),
    ("AA6_{11}", "AA6_{11}"),
    ("a_1", "a_1"),
    (r"\text{Monday}", "monday"),
    ("no solution", r"\text{No solution.}"),
    ("9 a.m.", "9:00 AM"),
    ("20:00", "20:00"),
    ("1000000", "10^6"),
    ("2000", r"2 \times 10^{3}"),
    ("3/2", r"1\frac{1}{2}"),
    (r"-\frac{3}{5}", r"\frac{-3}{5}"),
    ("1/1", "1/1"),
    ("56", "7 * 8 = 56"),
    ("2^{10}", "1024"),  # a gold that is arithmetic itself asks for its value, in any form
    ("2^{10}", "2^{10}"),
    ("2 × 2 × 3", "2 × 2 × 3"),
]

MATH_WRONG = [
    ("72", "73"),
    ("-5", "5"),
    ("1/3", "0.33"),
    ("1234567", "1234568"),
    ("(3,4)", "(4,3)"),
    (r"[2,\infty)", r"(2,\infty)"),
    ("3:2", "2:3"),
    ("x=5", "y=5"),
    ("3c", "3"),  # math-verify takes the c for a unit
    (r"5\text{ cm}", r"5\text{ m}"),
    ("5 cm", "5 m"),
    ("5", "5 hundred"),
    (r"2\text{ million}", "2"),
    ("10_2", "10_3"),
    ("1001_2", "1001_{3}"),
    ("Monday", "Tuesday"),
    ("east", "seat"),  # the same product of letters
    ("9 a.m.", "9 p.m."),
    (r"\pi", "3.14"),
    # Arithmetic left undone: the problem again, and no answer to it.
    ("56", "7 * 8"),
    ("56", r"7 \times 8"),
    ("1024", "2^{10}"),
    ("-13", "(-6 + (1 - 8))"),
    ("3/19", "222/1406"),
    ("3/19", r"\frac{222}{1406}"),
    ("2", "6/3"),
    ("3", "12/4 apples"),
]


@pytest.mark.parametrize(("gold", "answer"), MATH_RIGHT)
def test_math_accepts_equal_answers(gold: str, answer: str) -> None:
    assert load_verifier("math")(boxed(answer), gold).reward == 1


@pytest.mark.parametrize(("gold", "answer"), MATH_WRONG)
def test_math_refuses_other_answers(gold: str, answer: str) -> None:
    verdict = load_verifier("math")(boxed(answer), gold)
    assert (verdict.reward, verdict.verdict) == (0, "wrong")
    assert verdict.answer_found == answer


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("The answer is 72.", "72"),
        ("She earned $72 in total", "72"),
        ("24 + 48 = <<24+48=72>>72\n#### 72", "72"),
        ("#### 72\nQuestion: what is 2 + 3? 5", "72"),
        (r"\boxed{1} is too small, so we must try again: \boxed{72}", "72"),
        (r"\boxed{1} and \boxed{2}", "1,2"),
        (r"\boxed{\boxed{72}}", "72"),
        ("I think the answer is Monday.", "Monday"),
        ("x" * 5000 + " so 72", "72"),
    ],
)
def test_math_finds_the_answer(completion: str, gold: str) -> None:
    assert load_verifier("math")(completion, gold).verdict == "correct"


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("Solve the multiplication of 95 * 41.", "3895"),  # SmolLM2's, which math-verify accepts
        ("Avir Shorten: 84/252", "1/3"),
        (r"So \(7 \cdot 8\)", "56"),
    ],
)
def test_math_refuses_the_problem_as_an_answer_to_it(completion: str, gold: str) -> None:
    assert load_verifier("math")(completion, gold).verdict == "wrong"


@pytest.mark.parametrize("completion", ["", "I do not know.", r"\boxed{}"])
def test_no_answer_is_0_and_says_so(completion: str) -> None:
    for name in ("math", "numeric", "choice"):
        verdict = load_verifier(name)(completion, "E" if name == "choice" else "72")
        assert verdict.reward == 0
        assert verdict.verdict == "no_answer" or completion == r"\boxed{}"


@pytest.mark.parametrize(
    "gold",
    [
        "",
        r"n \equiv 1 \pmod{60}",
        r"x^2 - \sqrt{3}x + 1 = 0",  # math-verify: equal to any equation without real solutions
        r"\gcd(4, n)",
        "1, 2, ..., 10",
    ],
)
def test_math_judges_nothing_by_a_gold_it_cannot_compare(gold: str) -> None:
    verdict = load_verifier("math")(boxed("1"), gold)
    assert (verdict.reward, verdict.verdict) == (None, "error")
    assert verdict.reason == "finds no answer in the gold that it can compare"


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        (
            "She sold 48 clips in April and half as many in May, 72 altogether.",
            "finds a sentence in the gold, which no bare answer equals",
        ),
        ("9^{9^9}", "finds a number in the gold that is too large to compute"),
        ("((8!)!)!", "finds a number in the gold that is too large to compute"),
        ("2^{3^{4^{5}}}", "finds a number in the gold that is too large to compute"),
        ("2^{1000000}", "finds a number in the gold that is too large to compute"),
    ],
)
def test_math_says_why_it_judges_nothing_by_a_gold(gold: str, reason: str) -> None:
    verdict = load_verifier("math")(boxed(gold), gold)
    assert (verdict.reward, verdict.reason) == (None, reason)


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^9}}",
        "(9!)!!",
        "10000000!",
        "2^{2^{100}}",
        r"\binom{10000000}{5000000}",
        "1e99999999",
    ],
)
@pytest.mark.parametrize("gold", ["7", r"\sqrt{2}", "x+1", "(1,2)", "[1,2]", "Monday"])
def test_what_is_too_large_is_wrong_and_never_computed(answer: str, gold: str) -> None:
    started = time.process_time()
    for completion in (boxed(answer), f"The answer is {answer}.", f"So ${answer}$"):
        assert load_verifier("math")(completion, gold).reward == 0
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        (boxed("Hello   World"), "hello world", 1),
        ("well\n#### yes", "Yes", 1),
        ("thinking\n\n Yes \n\n", "yes", 1),
        ("the answer is yes", "yes", 0),
        (boxed("0.50"), "0.5", 0),
        ("", "yes", 0),
        ("yes", " ", None),
    ],
)
def test_exact(completion: str, gold: str, reward: int | None) -> None:
    assert load_verifier("exact")(completion, gold).reward == reward


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        ("it costs $1,234.50 in total.", "1234.5", 1),
        ("7 - 3 = 4", "4", 1),
        ("between 10-12", "12", 1),
        ("it is -12", "-12", 1),
        ("it is −12", "-12", 1),
        ("-$5", "-5", 1),
        ("6.02e23", r"6.02 \times 10^{23}", 1),
        (boxed(r"\frac{1}{4}") + " of the 100", "0.25", 1),
        ("1/4", "0.25", 1),
        ("1/0", "1", 0),
        ("50%", "0.5", 1),
        ("50%", "50", 1),
        ("50", "50%", 1),
        ("0.5", "50%", 1),
        ("5000", "50%", 0),
        ("1000000.5", "1000000", 1),
        ("1.0001", "1", 0),
        ("1e9999", "1", 0),
        ("5\n#### 72\n", "72", 1),
        (boxed("none"), "5", 0),
        ("5", "none", None),
        ("5", "1/0", None),
    ],
)
def test_numeric(completion: str, gold: str, reward: int | None) -> None:
    assert load_verifier("numeric")(completion, gold).reward == reward


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        (boxed("B"), "B"),
        (boxed("(B)"), "B"),
        (boxed(r"\text{B}"), "B"),
        (boxed(r"\textbf{(B)}\ 12"), "B"),
        ("A is wrong. The answer is (B).", "B"),
        ("The answer is B because A is not.", "B"),
        ("**Answer: B**", "B"),
        ("Final answer: option B", "B"),
        ("Let us see.\nB", "B"),
        ("Let us see.\n(b)", "b"),
        ("So it must be B.", "B"),
        ("The answer is I think unclear", None),
        ("The answer is a mystery", None),
        ("Both Alice and Bob.", None),
        ("", None),
    ],
)
def test_choice(completion: str, found: str | None) -> None:
    judge = load_verifier("choice")
    verdict = judge(completion, "(B)")
    assert verdict.answer_found == found
    assert verdict.reward == (1 if found else 0)
    assert judge(completion, "C").reward == 0
    assert judge(completion, "Bob").reward is None


def test_a_users_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def same(c, a): return c == a\n"
        "def count(c, a): return float(c.count(a))\n"
        "def unsure(c, a): return None\n"
        "def half(c, a): return 0.5\n"
        "def text(c, a): return '1'\n"
        "def fails(c, a): raise ValueError('no way')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def judge(function: str, completion: str) -> Verdict:
        return load_verifier(f"my_rewards:{function}")(completion, "a")

    assert judge("same", "a") == Verdict(1, "correct")
    assert judge("same", "b") == Verdict(0, "wrong")
    assert judge("count", "a") == Verdict(1, "correct")
    assert judge("unsure", "a") == Verdict(None, "error", None, "returned None")
    assert judge("half", "a") == Verdict(0.5, "wrong")
    assert judge("text", "a").verdict == "error"
    assert judge("fails", "a") == Verdict(None, "error", None, "raised ValueError: no way")
    with pytest.raises(UsageError, match="no such function"):
        load_verifier("my_rewards:missing")


def test_a_users_function_may_return_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "number_rewards.py").write_text(
        "def parts(c, a): return 0.7 + 0.2 + 0.1 if c == a else float(c)\n"
        "def ten(c, a): return float(c)\n"
        "ten.max_reward = 10\n"
        "def odd(c, a): return 1\n"
        "odd.max_reward = 'ten'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def judge(function: str, completion: str, threshold: float | None = None) -> Verdict:
        return load_verifier(f"number_rewards:{function}", threshold)(completion, "a")

    # 0.7 + 0.2 + 0.1 is 0.9999999999999999 in floating point, and all the same the maximum.
    assert judge("parts", "a").is_correct
    assert judge("parts", "0.75") == Verdict(0.75, "wrong")
    assert judge("parts", "0.75", 0.75) == Verdict(0.75, "correct")
    assert judge("parts", "-2") == Verdict(-2.0, "wrong")
    assert judge("parts", "-2", -3) == Verdict(-2.0, "correct")
    # Beyond the presumed maximum it is not known what correct means; a threshold says it.
    beyond = judge("parts", "3")
    assert (beyond.reward, beyond.verdict) == (None, "error")
    assert "returned 3.0, above 1, its maximum" in str(beyond.reason)
    assert judge("parts", "3", 2) == Verdict(3.0, "correct")
    assert judge("ten", "3") == Verdict(3.0, "wrong")
    assert judge("ten", "10") == Verdict(10.0, "correct")
    for infinite in ("nan", "inf"):
        assert judge("ten", infinite).verdict == "error"
    with pytest.raises(UsageError, match="max_reward is 'ten'"):
        judge("odd", "1")
    with pytest.raises(UsageError, match="--pass-threshold is nan"):
        judge("ten", "1", float("nan"))
    with pytest.raises(UsageError, match="math gives 0 or 1"):
        load_verifier("math", 0.5)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean numeric\?"):
        load_verifier("numerical")
    with pytest.raises(UsageError, match="No module named 'no_such_module'"):
        load_verifier("no_such_module:f")


HOSTILE_CHARACTERS = 300_000


@pytest.mark.parametrize(
    "piece",
    [
        *("1", "1,", "111,", ",111", "-", "$", "{", "}", "\\", " ", "\n", "####", "#### ", "(B) "),
        *("A", "a ", "answer ", "answer is ", r"\boxed", r"\boxed{", r"\boxed{}", r"\boxed{1}"),
        *(r"\text{", r"\text{ a", "1/", "1e", r"\frac{1}", r"\boxed   ", "1 %", ". ", "* ", "°"),
    ],
)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text = piece * (HOSTILE_CHARACTERS // len(piece))
    started = time.process_time()
    for name, gold in [("exact", "72"), ("numeric", "72"), ("choice", "B"), ("math", "Monday")]:
        judge = load_verifier(name)  # for a gold in words math-verify has no part
        judge(text, gold)
        judge(boxed(text), gold)
    load_verifier("math")(boxed(text), "1001_2")
    assert time.process_time() - started < 60  # about 1; quadratic time is many minutes
