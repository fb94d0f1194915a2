"""Checkpoints of others: what their files name is in their folder and no pickle, or they are refused and not opened."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import running_hub
from tiny import make_checkpoint

from hf_transfer.checkpoint_files import is_plain_name
from hf_transfer.config import ModelConfig
from hf_transfer.errors import InputError
from hf_transfer.loading import METADATA_SCHEMA, load
from hf_transfer.pretrained import find_checkpoint, load_pretrained

METADATA = {
    "schema": METADATA_SCHEMA,
    "problem": "single_label",
    "label_names": ["bad", "good"],
    "max_length": 32,
    "base_revision": "",
    "base_sha256": "",
    "keeps_head": False,
}


class Trap:
    """Pickled, it makes a file when somebody unpickles it."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A checkpoint in a folder of its own, beside one that its files must not name."""
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


def opened(name: object):
    model = ModelConfig(checkpoint=str(name))
    return load_pretrained(model, find_checkpoint(model), "AutoModel", {}, keep_head=True, seed=0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "../a", "a\0", None, 3, ["a"]])
def test_a_way_to_another_place_is_no_name(name):
    assert not is_plain_name(name)
    assert is_plain_name("model-00001-of-00002.safetensors") and is_plain_name("..model")


# shards


def shard(folder: Path, name: str, **index: object) -> None:
    """Put an index beside the weights that says that all of them are in ``name``."""
    from safetensors.torch import load_file

    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, name)} | index
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_in_the_folder_are_opened(folder):
    shard(folder, "shard.safetensors")
    assert opened(folder).newly_initialised == ()


@pytest.mark.parametrize("name", ["../elsewhere/model.safetensors", "{}/elsewhere/model.safetensors", "a/..", 3])
def test_shards_elsewhere_are_refused(folder, tmp_path, name):
    name = name.format(tmp_path) if isinstance(name, str) else name
    shard(folder, name)
    with pytest.raises(
        InputError, match=r"model\.safetensors\.index\.json names .*, which are no safetensors files in"
    ):
        opened(folder)


def test_pickled_shards_are_refused_and_not_opened(folder, tmp_path):
    shard(folder, "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match=r"names pytorch_model\.bin, which are no safetensors files in its folder"):
        opened(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("index", [{"weight_map": []}, {"weight_map": {"a": 1, "b": []}}, {"weight_map": None}])
def test_an_index_of_another_kind_is_refused_in_words(folder, index):
    shard(folder, "shard.safetensors", **index)
    with pytest.raises(InputError, match="checkpoint"):
        opened(folder)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 5_000])
def test_an_index_that_cannot_be_read_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json (cannot be read|is no JSON object)"):
        opened(folder)


# what config.json and its neighbours ask for


@pytest.mark.parametrize(
    "name", ["../elsewhere/model.safetensors", "pytorch_model.bin", "adapter_model.bin", "../x.safetensors.index.json"]
)
def test_weights_that_the_config_names_are_safetensors_of_the_folder(folder, name):
    change(folder / "config.json", transformers_weights=name)
    with pytest.raises(InputError, match="as its weights, which is no safetensors file in its folder"):
        opened(folder)


def test_an_index_that_the_config_names_is_looked_at(folder):
    shard(folder, "../elsewhere/model.safetensors")
    (folder / "model.safetensors.index.json").rename(folder / "other.safetensors.index.json")
    change(folder / "config.json", transformers_weights="other.safetensors.index.json")
    with pytest.raises(InputError, match=r"other\.safetensors\.index\.json names \.\./elsewhere"):
        opened(folder)


@pytest.mark.parametrize("where", ["config", "text_config"])
def test_attention_from_the_hub_is_refused(folder, where):
    wanted = {"attn_implementation": "somebody/their-kernel"}
    change(folder / "config.json", **(wanted if where == "config" else {where: wanted}))
    with pytest.raises(InputError, match=r"asks for attention by 'somebody/their-kernel', which is code from the Hub"):
        opened(folder)
    change(folder / "config.json", attn_implementation="eager", text_config={})
    assert opened(folder).newly_initialised == ()


def test_an_adapter_is_no_checkpoint_and_its_base_is_not_fetched(folder):
    change(folder / "adapter_config.json", base_model_name_or_path="somebody/base", peft_type="LORA")
    with pytest.raises(InputError, match="makes it an adapter, which would be put on a base that nobody chose"):
        opened(folder)


def test_a_tokenizer_file_elsewhere_is_refused(folder):
    change(folder / "tokenizer_config.json", fast_tokenizer_files=["../elsewhere/tokenizer.4.0.json"])
    with pytest.raises(InputError, match=r"tokenizer_config\.json names \.\./elsewhere/tokenizer\.4\.0\.json"):
        opened(folder)


def test_the_tokenizer_that_a_config_remembers_from_elsewhere_is_not_read(folder, tmp_path):
    """Files of the Hub often name a path of their author's machine, so that this cannot be refused."""
    text = (folder / "tokenizer.json").read_text()
    (tmp_path / "elsewhere" / "tokenizer.json").write_text(text.replace('"book"', '"secret"'))
    elsewhere = str(tmp_path / "elsewhere" / "tokenizer.json")
    change(folder / "tokenizer_config.json", tokenizer_file=elsewhere, vocab_file=elsewhere)
    vocabulary = opened(folder).tokenizer.get_vocab()
    assert "book" in vocabulary and "secret" not in vocabulary


def test_all_that_is_wrong_is_said_together(folder):
    shard(folder, "x.bin")
    change(folder / "tokenizer_config.json", fast_tokenizer_files=["/x"])
    change(folder / "config.json", attn_implementation="a/b")
    with pytest.raises(InputError) as caught:
        opened(folder)
    assert len(caught.value.problems) == 3


def test_links_that_a_user_made_are_followed(folder, tmp_path):
    """As in the Hub's own cache, whose snapshots are links into its store."""
    (tmp_path / "linked").mkdir()
    for path in folder.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    assert opened(tmp_path / "linked").newly_initialised == ()


# adapters


@pytest.mark.parametrize("task", ["classification", "translation"])
def test_a_pickled_adapter_is_refused_and_not_opened(checkpoint, tmp_path, task):
    folder = tmp_path / "adapter"
    folder.mkdir()
    change(folder / "adapter_config.json", peft_type="LORA", r=2, target_modules=["query"])
    change(folder / "hf_transfer.json", **METADATA, task=task, base_checkpoint=str(checkpoint))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match=r"holds no adapter_model\.safetensors: pickled adapters are not opened"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architectures": 3}', "[" * 5_000])
def test_a_config_that_is_none_is_refused_on_loading(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is unreadable"):
        load(folder)


# on the Hub


def one_good_and_others_bad(checkpoint: Path, base: Path) -> dict[str, Path]:
    """A good checkpoint and what may be wrong with others, by name."""
    names = ("good", "elsewhere", "pickled_shard", "pickled", "adapter", "code", "attention")
    folders = {name: Path(shutil.copytree(checkpoint, base / name)) for name in names}
    shard(folders["elsewhere"], "../../../../good/model.safetensors")
    shard(folders["pickled_shard"], "pytorch_model.bin")
    (folders["pickled_shard"] / "pytorch_model.bin").write_bytes(b"pickled")
    (folders["pickled"] / "model.safetensors").rename(folders["pickled"] / "pytorch_model.bin")
    change(folders["adapter"] / "adapter_config.json", base_model_name_or_path="org/its-base", peft_type="LORA")
    change(folders["code"] / "config.json", model_type="theirs", auto_map={"AutoConfig": "theirs.Config"})
    (folders["code"] / "theirs.py").write_text("raise SystemExit('ran')")
    change(folders["attention"] / "config.json", attn_implementation="org/kernel")
    return folders


OPEN = """
import json, sys
from hf_transfer.config import ModelConfig
from hf_transfer.errors import InputError
from hf_transfer.pretrained import find_checkpoint, load_pretrained

said = {}
for name in sys.argv[1:]:
    model = ModelConfig(checkpoint=f"org/{name}")
    try:
        load_pretrained(model, find_checkpoint(model), "AutoModel", {}, keep_head=True, seed=0)
        said[name] = "opened"
    except InputError as error:
        said[name] = str(error)
print("SAID", json.dumps(said))
"""


@pytest.mark.slow
def test_what_is_wrong_with_a_checkpoint_of_the_hub_is_found_before_it_is_fetched(checkpoint, tmp_path):
    folders = one_good_and_others_bad(checkpoint, tmp_path)
    wanted = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    with running_hub() as hub:
        for name, folder in folders.items():
            hub.add(f"org/{name}", {path.name: path.read_bytes() for path in folder.iterdir()})
        environment = os.environ | wanted | {"HF_ENDPOINT": hub.url}
        command = [sys.executable, "-c", OPEN, *folders]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        asked = [path for _, path in hub.seen]
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout.split("SAID")[1])
    assert said.pop("good") == "opened"
    words = {
        "elsewhere": "names ../../../../good/model.safetensors, which are no safetensors files in its folder",
        "pickled_shard": "names pytorch_model.bin, which are no safetensors files in its folder",
        "pickled": "org/pickled holds no safetensors weights, and pickled ones, which can run code, are not opened",
        "adapter": "org/adapter: adapter_config.json makes it an adapter",
        "code": "org/code brings its own Python code, which is off",
        "attention": "asks for attention by 'org/kernel', which is code from the Hub",
    }
    assert {name: text for name, text in said.items() if words[name] not in text} == {}
    unwanted = ("pytorch_model.bin", "its-base", "theirs.py", "kernel", "discussions", "convert")
    assert not [path for path in asked if any(word in path for word in unwanted)]
