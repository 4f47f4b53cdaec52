"""A verifier for tests, whose verdict the gold answer prescribes."""


def reward(completion: str, answer: str) -> bool:
    """Right where the answer is `always`, wrong where it is `never`, else where it is its start."""
    if answer in ("always", "never"):
        return answer == "always"
    return completion.startswith(answer)
