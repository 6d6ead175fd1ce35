"""The tools for assistants, asked by the official client over standard input and output."""

import asyncio
import json
import sys

import numpy as np
import pytest

pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters  # noqa: E402

from clamp3.features.embedder import Embedder  # noqa: E402
from clamp3.web.collection import DEMO, id_of  # noqa: E402
from conftest import CODE  # noqa: E402


def test_an_assistant_searches_embeds_and_is_told_what_is_wrong():
    tune = sorted(DEMO.glob("*.abc"))[0]
    calls = [
        ("search", {"query": "a lively Irish reel", "top_k": 3}),
        ("search", {"query": str(tune), "top_k": 2, "modality": "symbolic"}),
        ("embed", {"texts": ["a slow air"], "files": [str(tune), "/nowhere/a.abc"]}),
        *(("search", {"query": " "}), ("search", {"query": "a", "top_k": 0}), ("search", {"query": "/nowhere/a.abc"})),
        ("explain", {"text": "a", "id": "b"}),
        ("explain", {"text": "a lively reel", "id": id_of(tune.resolve())}),
        ("search", {"query": "a reel", "kind": "midi", "also": [id_of(tune.resolve())]}),
    ]

    async def ask():
        script = [str(CODE / "clamp3_mcp.py"), "--variant", "tiny", "--device", "cpu", "--threads", "1"]
        async with Client(StdioServerParameters(command=sys.executable, args=script)) as client:
            tools = await client.list_tools()
            return [tool.name for tool in tools.tools], [await client.call_tool(*call) for call in calls]

    names, answers = asyncio.run(asyncio.wait_for(ask(), 120))
    assert sorted(names) == ["embed", "explain", "search"]
    assert [answer.is_error for answer in answers] == [False] * 3 + [True] * 4 + [False] * 2
    by_text, by_file, embedded = (answer.structured_content["result"] for answer in answers[:3])
    assert [record["rank"] for record in by_text] == [1, 2, 3] and by_text[0]["percentile"] == 100
    assert by_file[0]["file"] == tune.name and by_file[0]["cosine"] > 0.9999
    embedder = Embedder.from_pretrained("tiny", "cpu")
    np.testing.assert_allclose(embedded[0]["embedding"], embedder.embed_text(["a slow air"])[0], atol=1e-4)
    np.testing.assert_allclose(embedded[1]["embedding"], embedder.embed_files([tune])[0], atol=1e-4)
    assert "error" in embedded[2] and "embedding" not in embedded[2]
    said = [json.dumps([block.text for block in answer.content]) for answer in answers[3:7]]
    for sentence, expected in zip(said, ("empty", "top_k", "no file", "no such file"), strict=True):
        assert expected in sentence
    why, midi = (answer.structured_content for answer in answers[7:])
    expected = embedder.explain("a lively reel", tune)
    assert why["cosine"] == pytest.approx(expected.cosine, abs=1e-4) and why["file"] == tune.name
    strongest = [one.as_json() for one in expected.strongest()["item"]]
    assert [one["first"] for one in why["item"]] == [one["first"] for one in strongest]
    assert {record["kind"] for record in midi["result"]} == {"midi"}
