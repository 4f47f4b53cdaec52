"""What TRL's `VLLMGeneration` uses of vLLM in its mode `colocate`, with transformers in its place.

vLLM takes other weights than those that it loaded on a GPU only, so on a CPU its class `LLM` is
stood in for. All else is the real thing: TRL's code, and vLLM's `SamplingParams`.
"""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM


class ColocatedLLM:
    """A model that is handed weights, and draws from them by torch's global generator.

    Attributes:
        arguments: what it was made with.
        asked: the sampling parameters of each call.
        loads: how often all weights were handed over.
        shift: what is added to the log-probability of every token, as another kernel would.
        is_shut: whether it was shut down.
    """

    made: "list[ColocatedLLM]" = []  # noqa: RUF012

    def __init__(self, model: str, **arguments: Any) -> None:
        self.arguments = {"model": model, **arguments}
        self.network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        # Whoever forgets to hand the weights over samples from nonsense.
        for parameter in self.network.parameters():
            torch.nn.init.zeros_(parameter)
        self.asked: list[Any] = []
        self.loads = 0
        self.shift = 0.0
        self.is_shut = False
        runner = SimpleNamespace(model=self)
        worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        core = SimpleNamespace(shutdown=lambda: setattr(self, "is_shut", True))
        self.llm_engine = SimpleNamespace(model_executor=worker, engine_core=core)
        self.made.append(self)

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, weight in weights:
            self.network.get_parameter(name).data.copy_(weight)

    def reset_prefix_cache(self) -> None:
        self.loads += 1

    @torch.no_grad()
    def generate(self, prompts: list[Any], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        self.asked.append(sampling_params)
        asked = [list(prompt["prompt_token_ids"]) for prompt in prompts]
        drawn: list[list[int]] = [[] for _ in asked]
        logprobs: list[list[Any]] = [[] for _ in asked]
        open_rows = list(range(len(asked)))
        for _ in range(sampling_params.max_tokens):
            if not open_rows:
                break
            logs = self._next([asked[row] + drawn[row] for row in open_rows])
            logs = torch.log_softmax(logs / sampling_params.temperature, dim=-1)
            tokens = torch.multinomial(logs.exp(), 1)[:, 0].tolist()
            for row, token, values in zip(open_rows, tokens, logs, strict=True):
                drawn[row].append(token)
                value = SimpleNamespace(logprob=values[token].item() + self.shift, rank=1)
                logprobs[row].append({token: value})
            stops = sampling_params.stop_token_ids
            open_rows = [row for row in open_rows if drawn[row][-1] not in stops]
        return [
            SimpleNamespace(
                prompt_token_ids=prompt, outputs=[SimpleNamespace(token_ids=ids, logprobs=values)]
            )
            for prompt, ids, values in zip(asked, drawn, logprobs, strict=True)
        ]

    def _next(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits of the next token of each row, (rows, vocabulary)."""
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        found: torch.Tensor = self.network(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False
        ).logits[:, -1]
        return found
