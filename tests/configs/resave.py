#!/usr/bin/env python3
"""Write configurations as the two current lines of transformers write them, and the defaults of their fields.

    pip install 'transformers==4.57.*'    in one environment
    pip install 'transformers==5.*'       in another
    python resave.py dump OLD.json        in the first
    python resave.py dump NEW.json        in the second
    python resave.py write OLD.json NEW.json

`dump` needs only transformers, no torch. It loads every configuration of tests/golden, every published one of
../shared/models/configs (UC_MODELS names another folder) and the one without any keys of every family, saves each of
them again, and lists the defaults and other names of the fields, also those of the other causal language models. `write` puts into the repository:

    tests/configs/LINE/CASE.json             the configuration of tests/golden/CASE as that line saves it
    tests/configs/LINE/default-FAMILY.json   a configuration of default values as that line saves it, every key spelled out
    tests/configs/published-LINE.json        what saving changes in the published ones, which are not part of the project
    common/model/src/families/defaults.json  defaults and other names of fields, which the program reads

`common/model/tests/resaved.rs` compares the plans.
"""

import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("UC_MODELS", ROOT / "../shared/models"))
FAMILIES = (
    "deepseek_v3 gemma2 gemma3_text gpt2 gpt_neox granite granitemoe llama mamba mamba2 "
    "mistral mixtral olmo2 phi3 phimoe qwen2 qwen3 qwen3_moe"
).split()
# Fields of which the default depends on the machine or on the version.
# Falsy values of these keys ask for something, whatever the default of another architecture is.
MEANINGFUL = {"causal", "is_causal"}
VOLATILE = {"transformers_version", "model_type", "architectures", "_name_or_path", "dtype", "torch_dtype"}


def resaved(config):
    """The text that `save_pretrained` writes for a configuration given as a dictionary."""
    from transformers import CONFIG_MAPPING

    config = dict(config)
    kind = CONFIG_MAPPING[config["model_type"]]
    return kind.from_dict(config).to_json_string(use_diff=True)


def plain(value):
    """A value as JSON stores it; infinity in the spelling of transformers 5."""
    text = json.dumps(value, default=str)
    return json.loads(text, parse_constant=lambda name: {"__float__": name})


def dump(path):
    import transformers
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    out = {"version": transformers.__version__, "cases": {}, "published": {}, "families": {}, "aliases": {}, "falsy": {}, "seen": []}
    for case in sorted((ROOT / "tests/golden").iterdir()):
        try:
            out["cases"][case.name] = resaved(json.loads((case / "config.json").read_text()))
        except (KeyError, ValueError) as error:
            print(f"{case.name} is not accepted by {transformers.__version__}: {error}", file=sys.stderr)
    for file in sorted((SHARED / "configs").glob("*.json")):
        out["published"][file.stem] = json.loads(resaved(json.loads(file.read_text())))
    for family in FAMILIES:
        default = CONFIG_MAPPING[family]()
        out["cases"][f"default-{family}"] = default.to_json_string(use_diff=False)
        fields = plain(json.loads(default.to_json_string(use_diff=False)))
        out["families"][family] = {key: value for key, value in fields.items() if key not in VOLATILE}
        out["aliases"][family] = dict(default.attribute_map)
    seen = {}
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        try:
            fields = plain(CONFIG_MAPPING[kind]().to_dict())
        except Exception:  # some configurations have no defaults, or need other packages
            continue
        for key, value in fields.items():
            seen.setdefault(key, []).append(value)
    out["seen"] = sorted(seen)
    for key, values in seen.items():
        first = values[0]
        if not first and first is not None and all(json.dumps(value) == json.dumps(first) for value in values):
            out["falsy"][key] = first
    pathlib.Path(path).write_text(json.dumps(out))


def short(value, original):
    """A value in which long lists are written as a repetition, or as a copy of a list of `original`."""
    if isinstance(value, dict):
        return {key: short(part, original) for key, part in value.items()}
    if not isinstance(value, list) or len(value) < 4:
        return value
    if all(part == value[0] for part in value):
        return {"repeat": value[0], "times": len(value)}
    for outer, part in original.items():
        for inner in part if isinstance(part, dict) else ():
            if part[inner] == value:
                return {"copy": [outer, inner]}
    return value


def changes(original, saved):
    """What to set in `original`, and which keys to remove, to get `saved`."""
    set_keys = {k: short(v, original) for k, v in saved.items() if k not in original or original[k] != v}
    return {"remove": sorted(k for k in original if k not in saved), "set": set_keys}


def lines(table):
    """A JSON object with one entry a line."""
    entries = (f"  {json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in sorted(table.items()))
    return "{\n" + ",\n".join(entries) + "\n}\n"


def merged(one, other):
    """The distinct values of every key of two tables of one value each."""
    table = {key: [value] for key, value in one.items()}
    for key, value in other.items():
        known = table.setdefault(key, [])
        if json.dumps(value) not in map(json.dumps, known):
            known.append(value)
    return table


def write(old, new):
    dumps = [json.loads(pathlib.Path(path).read_text()) for path in (old, new)]
    folder = ROOT / "tests/configs"
    for number, dump in enumerate(dumps):
        line = ".".join(dump["version"].split(".")[:2])
        (folder / line).mkdir(exist_ok=True)
        for case, text in dump["cases"].items():
            (folder / line / f"{case}.json").write_text(text)
        published = {}
        for name, saved in dump["published"].items():
            original = json.loads((SHARED / "configs" / f"{name}.json").read_text())
            published[name] = changes(original, saved)
        (folder / f"published-{line}.json").write_text(lines(published))
    one, other = dumps
    families = {family: merged(one["families"][family], other["families"][family]) for family in FAMILIES}
    aliases = {}
    for dump in dumps:
        for family, names in dump["aliases"].items():
            aliases.setdefault(family, {}).update(names)
    # A key must have the same falsy default in every configuration of both lines.
    both = {**one["falsy"], **other["falsy"]}
    falsy = {
        key: value
        for key, value in both.items()
        if key not in MEANINGFUL and all(dump["falsy"].get(key, value) == value and (key in dump["falsy"] or key not in dump["seen"]) for dump in dumps)
    }
    first = families[FAMILIES[0]]
    common = {k: v for k, v in first.items() if all(family.get(k) == v for family in families.values())}
    families = {name: {k: v for k, v in family.items() if k not in common} for name, family in families.items()}
    table = {"aliases": {f: a for f, a in aliases.items() if a}, "common": common, "elsewhere": falsy, "families": families}
    (ROOT / "common/model/src/families/defaults.json").write_text(
        "{\n" + ",\n".join(f" {json.dumps(part)}: {lines(value).rstrip()}" for part, value in sorted(table.items())) + "\n}\n"
    )


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    {"dump": dump, "write": write}[command](*arguments)
