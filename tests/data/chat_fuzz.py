"""Random conversations with tools, in every way that a file may hold them, and what is to be
learnt of each, found from transformers' tokens alone."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.chats import random_text, write_jsonl

HEADER, HEADER_END, END_OF_TURN, END_OF_MESSAGE = 128006, 128007, 128009, 128008
ASSISTANT = 78191

PARAMETERS: dict[str, dict[str, Any]] = {
    "city": {"type": "string"},
    "default": {"type": "string"},
    "enum": {"type": "integer"},
    "fixed": {"const": None},
    "limit": {"type": "integer", "default": 10},
    "points": {"type": "array", "items": {"type": "object"}},
    "ratio": {"type": "number"},
    "tags": {"type": ["array", "null"], "enum": [["a"], None], "default": None},
    "where": {
        "type": "object",
        "properties": {"lat": {"type": "number"}, "deep": {"type": "object"}},
    },
}
"""Parameters by name; a few have the names of a schema's own keys."""


class File:
    """Conversations that one file can hold, whatever its format: texts or parts, one spelling."""

    def __init__(self, generator: random.Random, count: int) -> None:
        self.generator = generator
        self.has_parts = generator.random() < 0.4
        self.weight_key = generator.choice(["weight", "train", "training", "loss"])
        self.spelling = generator.choice(["messages", "messages", "prompt", "conversations"])
        if self.has_parts and self.spelling == "conversations":
            self.spelling = "messages"
        self.judged = [self._conversation(is_first=number == 0) for number in range(count)]
        self.records = [self._record(chat) for chat in self.judged]

    def write(self, folder: Path) -> dict[str, Path]:
        """The same conversations as JSONL, as structs of parquet, and as JSON in parquet."""
        folder.mkdir()
        paths = {
            "jsonl": write_jsonl(folder / "a.jsonl", self.records),
            "struct": folder / "struct.parquet",
            "text": folder / "text.parquet",
        }
        for name, records in (("struct", self.records), ("text", self._texts())):
            columns = {key: [record.get(key) for record in records] for key in _keys(records)}
            arrays = {key: pa.array(values, arrow_type(values)) for key, values in columns.items()}
            pq.write_table(pa.table(arrays), paths[name])
        return paths

    def _texts(self) -> list[dict[str, Any]]:
        """Records whose tools and calls are JSON, or whose turns are, each or all."""
        way = self.generator.choice(["calls", "turns", "all"])
        return [self._text(record, way) for record in self.records]

    def _text(self, record: dict[str, Any], way: str) -> dict[str, Any]:
        texts = dict(record)
        if "tools" in record:
            tools = record["tools"]
            is_one = self.spelling != "prompt"
            texts["tools"] = json.dumps(tools) if is_one else [json.dumps(tool) for tool in tools]
        for key in ("messages", "conversations", "prompt", "completion"):
            if key not in record:
                continue
            if way == "all" and key in ("messages", "conversations"):
                texts[key] = json.dumps(record[key])
            elif way != "calls":
                texts[key] = [json.dumps(turn) for turn in record[key]]
            else:
                texts[key] = [
                    {**turn, "tool_calls": json.dumps(turn["tool_calls"])}
                    if turn.get("tool_calls")
                    else turn
                    for turn in record[key]
                ]
        return texts

    def _conversation(self, is_first: bool) -> dict[str, Any]:
        """Turns as OpenAI spells them, to be read whole: nothing to be cut or left out."""
        generator = self.generator
        chat: dict[str, Any] = {"messages": [], "weights": []}
        names = sorted(generator.sample(sorted(PARAMETERS), generator.randint(1, 4)))
        if is_first or generator.random() < 0.6:
            chat["tools"] = [self._tool("f", list(PARAMETERS) if is_first else names)]
            chat["tools"] += [self._tool("größe", ["city"]) for _ in range(generator.randint(0, 2))]
        if generator.random() < 0.5:
            chat["messages"].append({"role": "system", "content": random_text(generator)})
        for _ in range(generator.randint(1, 3)):
            chat["messages"].append({"role": "user", "content": random_text(generator)})
            if "tools" in chat and (is_first or generator.random() < 0.5):
                call = self._call(list(PARAMETERS) if is_first else names, is_first)
                chat["messages"] += [call, {"role": "tool", "content": random_text(generator)}]
            chat["messages"].append({"role": "assistant", "content": random_text(generator)})
        answers = sum(message["role"] == "assistant" for message in chat["messages"])
        chat["weights"] = [generator.random() < 0.8 for _ in range(answers)]
        chat["weights"][-1] = True
        return chat

    def _tool(self, name: str, names: list[str]) -> dict[str, Any]:
        generator = self.generator
        properties = {}
        for key in names:
            schema = dict(PARAMETERS[key])
            if generator.random() < 0.5:
                schema["description"] = random_text(generator)
            if key == "city" and generator.random() < 0.5:
                schema["enum"] = ["Oslo", "Rome"]
            if key in ("city", "default") and generator.random() < 0.5:
                schema["default"] = "Oslo"
            if key == "limit" and generator.random() < 0.5:
                del schema["default"]
            properties[key] = schema
        parameters: dict[str, Any] = {"type": "object", "properties": properties}
        if generator.random() < 0.5:
            parameters["required"] = names[:1]
        function = {"name": name, "parameters": parameters}
        if generator.random() < 0.7:
            function["description"] = random_text(generator)
        return in_order({"type": "function", "function": function})

    def _call(self, names: list[str], is_first: bool) -> dict[str, Any]:
        generator = self.generator
        wanted = names if is_first else [name for name in names if generator.random() < 0.7]
        arguments = {name: self._argument(name, is_first) for name in wanted}
        function = {"name": "f", "arguments": in_order(arguments)}
        call: dict[str, Any] = {"type": "function", "function": function}
        if generator.random() < 0.5:
            call["id"] = "call_1"
        turn: dict[str, Any] = {"role": "assistant", "tool_calls": [call]}
        return turn if generator.random() < 0.5 else {**turn, "content": None}

    def _argument(self, name: str, is_first: bool) -> Any:
        generator = self.generator
        some = [key for key in ("x", "y", "z") if is_first or generator.random() < 0.5] or ["y"]
        return {
            "city": random_text(generator),
            "default": random_text(generator),
            "enum": generator.randint(-9, 9),
            "fixed": True,
            "limit": generator.randint(0, 1 << 40),
            "points": [{key: generator.random() for key in some}, {"x": 1.5}],
            "ratio": generator.random(),
            "tags": [random_text(generator), None],
            "where": {"deep": {key: {"note": key} for key in some}, "lat": 1e-9},
        }[name]

    def _record(self, chat: dict[str, Any]) -> dict[str, Any]:
        """The record: parts, weights, and what is to be cut, in the file's spelling."""
        generator = self.generator
        weights = iter(chat["weights"])
        turns = []
        for message in chat["messages"]:
            turn = dict(message)
            if self.has_parts and isinstance(turn.get("content"), str) and turn["role"] != "tool":
                turn["content"] = self._parts(turn["content"])
            elif self.has_parts and turn["role"] == "tool":
                # data in a list is written as JSON, by the template too
                message["content"] = turn["content"] = [{"text": turn["content"], "type": "text"}]
            if turn["role"] == "assistant":
                weight = next(weights)
                if not weight or generator.random() < 0.3:
                    turn[self.weight_key] = self._weight(weight)
                if generator.random() < 0.2:
                    turn["reasoning_content"] = random_text(generator)
            turns.append(turn)
        record: dict[str, Any] = {"tools": chat["tools"]} if "tools" in chat else {}
        if self.spelling == "prompt":
            chat["weights"] = [False] * (len(chat["weights"]) - 1) + chat["weights"][-1:]
            return {"prompt": turns[:-1], "completion": turns[-1:], **record}
        cut = {"role": "assistant", "content": turns[-1]["content"]}
        if generator.random() < 0.2:
            turns.insert(int(turns[0]["role"] == "system"), cut)
        if generator.random() < 0.2:
            turns.append({"role": "user", "content": turns[-1]["content"]})
        if self.spelling == "conversations":
            return {"conversations": [_sharegpt(turn) for turn in turns], **record}
        return {"messages": turns, **record}

    def _weight(self, weight: bool) -> Any:
        return weight if self.weight_key != "weight" else int(weight)

    def _parts(self, text: str) -> list[dict[str, Any]]:
        cuts = sorted(self.generator.sample(range(len(text) + 1), min(2, len(text))))
        edges = [0, *cuts, len(text)]
        texts = [text[a:b] for a, b in itertools.pairwise(edges)]
        return [{"text": part, "type": "text"} for part in texts]


def _sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    rest = {k: v for k, v in turn.items() if k not in ("role", "content", "tool_calls")}
    if "tool_calls" in turn:
        call = json.dumps(turn["tool_calls"][0]["function"])
        return {"from": "function_call", "value": call, **rest}
    names = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    return {"from": names[turn["role"]], "value": turn["content"], **rest}


def in_order(value: Any) -> Any:
    """The value with sorted keys: a struct has one order for all rows."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(item) for item in value] if isinstance(value, list) else value


def _keys(records: list[dict[str, Any]]) -> list[str]:
    return sorted({key for record in records for key in record})


def arrow_type(values: list[Any]) -> Any:
    """The narrowest type that holds all values, the keys of structs sorted."""
    given = [value for value in values if value is not None]
    if not given:
        return pa.null()
    if isinstance(given[0], dict):
        fields = {key: [value.get(key) for value in given] for key in _keys(given)}
        return pa.struct([(key, arrow_type(inner)) for key, inner in fields.items()])
    if isinstance(given[0], list):
        return pa.list_(arrow_type([item for value in given for item in value]))
    return pa.infer_type(given)


def expected_mask(tokens: list[int], weights: list[bool]) -> list[int]:
    """What is to be learnt: behind each header of the assistant's, up to the end of its turn."""
    mask = [0] * len(tokens)
    left = iter(weights)
    for place in range(len(tokens)):
        if tokens[place : place + 3] == [HEADER, ASSISTANT, HEADER_END]:
            first = place + 4  # behind the empty line
            ends = (END_OF_TURN, END_OF_MESSAGE)
            last = next(i for i in range(first, len(tokens)) if tokens[i] in ends)
            if next(left):
                mask[first : last + 1] = [1] * (last + 1 - first)
    assert next(left, None) is None, "an assistant's turn is missing"
    return mask
