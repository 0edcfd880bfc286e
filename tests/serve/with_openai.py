"""The official `openai` package against a running `uc serve`, unchanged.

    uc serve PACK --port 8080 --api-key-file KEYFILE --model-name NAME
    python with_openai.py http://127.0.0.1:8080 KEY NAME FINGERPRINT

The pack must have a chat template with tools in the style of Hermes. tests/tests/serve_clients.rs runs this.
"""

import json
import sys

import openai

ADDRESS, KEY, NAME, FINGERPRINT = sys.argv[1:5]
client = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0)
PROMPT = "Once upon a time"
TALK = [{"role": "user", "content": "Tell a story"}]
GREEDY = {"model": NAME, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "description": "Paints things", "parameters": SCHEMA}}


def check_object(text):
    value = json.loads(text)
    assert value["colour"] in ("red", "blue") and 0 <= value["count"] <= 9, text


def models():
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def completions():
    answer = client.completions.create(prompt=PROMPT, max_tokens=10, **GREEDY)
    assert answer.system_fingerprint == FINGERPRINT
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and answer.usage.completion_tokens == 10
    stream = client.completions.create(
        prompt=PROMPT, max_tokens=10, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    parts = list(stream)
    assert "".join(part.choices[0].text for part in parts if part.choices) == choice.text
    assert parts[-1].usage.completion_tokens == 10
    echo = client.completions.create(prompt=PROMPT, max_tokens=1, echo=True, logprobs=2, **GREEDY).choices[0]
    assert echo.text.startswith(PROMPT)
    assert echo.logprobs.token_logprobs[0] is None and all(value <= 0 for value in echo.logprobs.token_logprobs[1:])
    assert "".join(echo.logprobs.tokens) == echo.text
    several = client.completions.create(model=NAME, prompt=[PROMPT, "The"], n=2, seed=1, max_tokens=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    again = client.completions.create(model=NAME, prompt=[PROMPT, "The"], n=2, seed=1, max_tokens=3)
    assert [choice.text for choice in again.choices] == [choice.text for choice in several.choices]


def chat():
    request = dict(messages=TALK, max_completion_tokens=12, logprobs=True, top_logprobs=2, **GREEDY)
    answer = client.chat.completions.create(**request)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    content = choice.logprobs.content
    assert len(content) == 12 and all(len(entry.top_logprobs) == 2 for entry in content)
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == choice.message.content
    stream = client.chat.completions.create(messages=TALK, max_completion_tokens=12, stream=True, **GREEDY)
    deltas = [part.choices[0].delta for part in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == choice.message.content


def formats():
    schema = {"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(messages=TALK, response_format=schema, max_tokens=60, **GREEDY)
    check_object(answer.choices[0].message.content)
    answer = client.chat.completions.create(messages=TALK, response_format={"type": "json_object"}, max_tokens=30, **GREEDY)
    assert answer.choices[0].message.content.startswith("{")


def tools():
    request = dict(messages=TALK, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=120, **GREEDY)
    answer = client.chat.completions.create(**request)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function" and call.function.name == "paint"
    check_object(call.function.arguments)
    # The result goes back.
    talk = TALK + [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    client.chat.completions.create(messages=talk, tools=[TOOL], max_tokens=5, **GREEDY)
    with client.chat.completions.stream(**request) as stream:
        final = stream.get_final_completion()
    (streamed,) = final.choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)


def fails(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, (error.code, code)
        return
    raise AssertionError(f"{kind} was expected")


def errors():
    create = client.completions.create
    fails(openai.NotFoundError, "model_not_found", lambda: create(model="other", prompt=PROMPT))
    fails(openai.BadRequestError, None, lambda: create(model=NAME, prompt=PROMPT, temperature=5))
    fails(openai.BadRequestError, "context_length_exceeded", lambda: create(model=NAME, prompt="once " * 5000))
    fails(openai.BadRequestError, None, lambda: create(model=NAME, prompt=PROMPT, suffix="end"))
    stranger = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="another key of some length", max_retries=0)
    fails(openai.AuthenticationError, "invalid_api_key", lambda: stranger.models.list())
    fails(openai.NotFoundError, "unknown_url", lambda: client.embeddings.create(model=NAME, input="a"))


def main():
    for part in (models, completions, chat, formats, tools, errors):
        part()
        print(f"{part.__name__}: passed")


if __name__ == "__main__":
    main()
