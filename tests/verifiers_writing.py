"""Writes `traces.jsonl` by verifiers' own code, an episode a rollout.

Run in a process of its own, with verifiers on PYTHONPATH: `python verifiers_writing.py FOLDER`; the
rollouts stand on standard input as JSON: question, answer, info, completion, reward, step, and the
token ids of prompt and completion.
"""

import json
import sys
from pathlib import Path

import verifiers.v1 as vf
from verifiers.v1.configs.agent import WireAgentConfig
from verifiers.v1.episode import EnvInfo, Episode, TrainRunInfo, TrainWorkInfo
from verifiers.v1.graph import MessageNode
from verifiers.v1.trace import AgentInfo, Reward, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, UserMessage
from verifiers.v1.utils.trace_store import write_episode


class Sum(vf.TaskData):
    answer: str
    info: str


folder = Path(sys.argv[1])
for rollout in json.load(sys.stdin):
    question = rollout["question"]
    data = Sum(prompt=question, answer=rollout["answer"], info=rollout["info"])
    task = TraceTask(type="Sum", data=data)
    read, written = rollout["prompt_token_ids"], rollout["completion_token_ids"]
    # The end of the prompt, where the policy's turn begins, is of its message, but not sampled.
    answer = MessageNode(
        parent=0,
        message=AssistantMessage(content=rollout["completion"]),
        sampled=True,
        token_ids=[read[-1], *written],
        mask=[False, *[True] * len(written)],
    )
    asked = MessageNode(
        message=UserMessage(content=question),
        token_ids=read[:-1],
        mask=[False] * (len(read) - 1),
    )
    reward = rollout["reward"]
    trace = Trace(
        task=task,
        agent=AgentInfo(config=WireAgentConfig()),
        nodes=[asked, answer],
        rewards={"correct": None if reward is None else Reward(score=reward, weight=0.5)},
    )
    episode = Episode(env=EnvInfo(id="sums"), task=task, traces=[trace], ok=True)
    episode.record_run(TrainRunInfo(id="r", work=TrainWorkInfo(step=rollout["step"])))
    write_episode(folder, episode)
