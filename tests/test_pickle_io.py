"""Pickles of rollouts: what CAT-K and TrajTok write is read, and nothing else happens."""

from __future__ import annotations

import base64
import collections
import os
import pickle
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollouts_examples import example, same

from wosac_toolkit.errors import FormatError, RolloutsError, WosacError
from wosac_toolkit.io.pickled import read_pickle, write_pickle
from wosac_toolkit.rollouts import Rollouts

ONE = example("scene")
CONTENT = {"simulated_states": ONE.states, "agent_id": ONE.object_ids}

# What torch 2.11 pickles, deflated: {"simulated_states": `states`, "agent_id": [7, 3]} where
# `states` is torch.arange(96.).reshape(2, 3, 4, 4)[:, 1:3] in one of its forms.
TORCH = {
    "tensors": (
        "eNrN0s9r02AYB/A3aWZn12ERDwoeevAQQYprp3TgYVYZSPDXvOQiL2nyukaypG/yZjChEMRKN4IM9ypDhgwRKSIy"
        "RGSIiEePHjx49Kg3PangwW/WDbF/gW/45E3ePO+PvO+TaPc+5sh26Ug9LUXufOxZgjk0EqgimRZFENqtCo2F6+F1"
        "Pw1ZM3Y9hwrmR0FIF6pyFT3HB2ERKmuOybREvcBy6LUwmKfNxWykVdn4rhCSqMsF7/f6zK/y9f6lQ5VEPf81h3uH"
        "E90sYRntMBCBHXh0gYWRG/hcQYA5ji+eK4THKPMd1/K52jMLaBSLbUYj9waLeK7DNd0cQWPUCkLBRwzVzP7N9QXf"
        "Y2imlo0R+HM8b2hxjDl1M58FD5bMib39C4UZLFxcGTQWuGLuRcxEtVarTk3UTvLBkHY75jlj+oLg2mUMdJWToTDF"
        "qkyT3ZKcJqQHK7AGG9CHTdiCd/AePsAn+Axf4Bv8BNIgRINRKEIJDsBBOAxlOAI6HIPjMAl1OAUJ3IRbcBt6sAwp"
        "3IEVuAsS7sMaPIB1eAgb8AgewxPow1N4Bs9hE17AS3gFW/Aa3sDbhuzKWWkQ3VBxaYYmpG6UjRIeFSGX0jGctcds"
        "gaNGeo1dDB0WMuesawtkzNFZKdA7HcVZ+IK6jmxpeit/5sd/n0Xn/OEcqtZOTNVr9erkPzmkDufQ3zDkkLqTQdkM"
        "WZ+dvTTUrjSUrlxq7dvdoSKNbOZboRtku5TmrKYt48ofExEPrw=="
    ),
    "views of larger storages": (
        "eNrV0sFr02AcxvG0zezsNgziQcHDDh4iSOk6FQeCs4whZOrcPOSgpF0T10jW9E3eDCcOgjjZRpHhogwZMkRkiMgQ"
        "kSEiO3r06NGj3jwqePC7taLuPzDJ532TN7+8eROeWH0wrio722yiN7XQnYq8inRsK5R0YdLsln5QreWtSLoel/ut"
        "wJmIXM+2pFMP/cCaLibLPNnTKgvpKpNO0tQsz6/Y1rXAn7ImZrZnWk5KIq0ocXox5/1cHf7Re3199FA+Tp//mqGd"
        "FYpuaiyjEfjSr/qeNe0EoevXRYoCs4c7niul51hO3XYrdZGeN3MMypmGY4XuTScUmVmh6mYHg2HND6ToMNJmhiu3"
        "LsUeQzW3v9Pz65Mia6hRxDt1M7td3FqyUKo7n5AbZuFyvDWYEylzLzXF/v6+wsDAiaJoTVltRCJjlC9IoV5ioqtC"
        "2VWWquTLyt9bfIZmkAMx1rCFz1DOKoqGXhQwiFGU0UCMeSxhBWtYxwY2sYUP+IhP+Iwv+IbvUEqKoqIT3dBwAAdx"
        "GL04Ah3HUMBxnMJpDGII5zCCUVyGiSsow0YNHhqQuIFbiHEbd3AX81hEE/ewhPtI8BAreIRVPMYanuApnmEdz/EC"
        "L7GBV3iNN9jEW7zD+1Iyl4wlhqYbaXbVUGWiGwVD4zQlk4VmF1nznKokasS762JgO4FjD7lVSWKPjiWSp5udZKEu"
        "LddOaqpey5Y6U/9BkEco2ZXjPhJaHOjrP/lPjjO7c/ynjBxn2glOtftsu/893vq/KSM9RzuXLNT2tf9alP8FjIMZ"
        "KQ=="
    ),
    "expanded tensor": (
        "eNrN0s9LFGEcx/FnZ8e0VWmJDgUdPHSYIMRWBYVAM5Fi+mHWYQ7F7LozuRPjzD4zz0pGwhIZKktITiEhIREhESER"
        "IRHhsWPHjh7r1q2CDr3XNaj8BxrmNTPPM9/nmecZPlX9wYAuto+ZxKhlY2+y4heU69ix4hYntTYVRsVSp11Rnk9z"
        "vx254xXPd2zlBnEY2VO5ZImR7Y2ymFthwk1qWdsPC459LQon7fHp+kxLyZDUhKhqCxn/58rIj47ra6OHOqvauS9p"
        "rjNSGFaWZZSjUIXF0Len3Cj2wkCmKLDaeeN7Svmu7QaOVwikNmdl6FTTZdeOvZtuLNMzUjesJjrjUhgp2WRqVpqW"
        "Fyi5x9St+j79MJiQzaZeqfBNw2quFzeWLEVxewuZERauLjU6MzJl7aUm1919vKu/vzcnG1MWyxWZNvPnldQvMtFV"
        "Kf4pSxU68+LPozrAZZATVaxiE1sQJ4XIogNdGMQo8iijijksYhmrWMM6NrCJD/iIT9jCZ3zFd4ghIXS0oA1ZHMBB"
        "HEYHjsDAMXShB304gUEM4zTOYhSXYeEK8nBQgo8yFG7gFqq4jTu4izksoIZ7WMR9JHiIZTzCCh5jFU/wFM+whud4"
        "gZdYxyu8xhts4C3e4f1QMpuMJWbWMMmDqZu6SgxTmFkeUyqZr7WSNd8tKqJGvFsvRI4buc6wV1Qk9uhYohhdayEL"
        "gbI9JynpRqn51Lf/PsVngt0Z7u3v6+7L9fyVYW13hn+XkWFtJ731L9THNP6lMLXZxEzNJvOlfTt/qNL5C360GYo="
    ),
    "tensors of a GPU": (
        "eNrN0s1r02AcB/AnabbObsMyPCh46MFDBCl9GbOKh1llIMG3eclFHrLkcY1kyZ7kyWBCoYiVbgQZ7lGGDBkiUkRk"
        "iMgQES+CR48ePerNgwcdHvxmrQj9C5bwyZM8+T3vv5b24GOG7F1NqSf5yF2IPUswh0YCRSSTMRGEdqNIY+F6+Jyg"
        "IZuLXc+hgvlRENKlilxHy/FeWITCmmcyyVMvsBx6IwwW6Nxy2tO6rP9UCGmpqznvz+bM78LN7pUjxZZ68XsGzyYn"
        "upnHNBbDQAR24NElFkZu4HMFAeY4/niuEB6jzHdcy+dqx8yhUiwvMhq5t1jEM02u6eYQKqNGEAo+ZKhmujbXF3zY"
        "0Ewt7SPw53nW0OIYY+pmNg3uTZkTe28JuRlMXFzrVea4Yh5ATKVamayVT1ZqXDWH8W3HjnW6xDPG9CXBtavo6zon"
        "A5GKVZwm/67WWUI6sAYbsAVd2IYd+ACf4DN8ga/wDX7ALyB1QjQYgTHIwyE4DEehAMdAhxNQgkmowRlowW24A3eh"
        "A6uQwD1Yg/sg4SFswCPYhMewBU/gKTyDLjyHF/AStuEVvIY3sANv4R28r8u2nJUG0Q0Vt2ZoQupGwcjjVRFyJRnF"
        "cXvMFjhtZNjo5dBhIXPOu7ZA0hyflQKtkxEchy+o68iGpjey53b3fSJd8AfTqHyqVJ2qVspTg2mkDqbR/0ikkdpP"
        "onSQdB797TTUtjSUtlxpHOxvUlz8C067CMo="
    ),
    "bfloat16": (
        "eNrNUc9rE0EY3d1sTU1bDOJBwUMOHlaQENNYU/DQeUpBFn/Vy15kSXfHZmW7m9mdLVQIBDGSlkWKHaVIkSIiQUSK"
        "iBQR8ejRo0ePevOmggdnm3jQ/gPOwHwz37zv13sd/T5yyu5qCyMtxt5i4jc4de2YSxOLdJyHkdMs2wn3fPk8aEd0"
        "PvF81+Y0iMPIXqqKdRk5MYDF0jQWqEiLth82XPt6FC7a88tZpnUBripKR1st+L82Z3+WbvQvHyl3tAtfc/JsM8Ww"
        "irKNVhTy0Al9e4lGsRcGTJUAa0L++B7nPrVp4HqNgGk9qyCdfLlF7di7SWOWazPdsEakM26GEWcjpmZls3kBZ/tM"
        "3dKzHGGwwPKmniSypmHlM/CgZaY4uyMUMCs75yenrg78BaZa+yWsOjlVOV2ZrtXYIKvTSljOnLnImX5F5rrGlH9g"
        "aqM8M2BW6ZAeWSMbZIv0yTbZIe/JB/KRfCKfyRfyjfwgCnSMYhxFHMJhHEUJx2DgBCqooY4z6OAWbuMOelhFirtY"
        "wz0IPMAGHmITj7CFx3iCp+jjGZ7jBbbxEq/wGjt4g7d4B9EVc8JUDFOTWzd1LgyzZBblVeViJR2TdPvU4ZJtqfDY"
        "pcilEXXPeQ6Xoh2fE1xGp6OSi4DbniuautHMn/3+3wt5PuB7NDw1XZ+sV//WUNur4R+Y1FAbaphVyGKGXJpaV5hq"
        "V6w0DwwZSsq/AUwbBv8="
    ),
}
TORCH_STATES = np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4)[:, 1:3]


def dump(folder: Path, content: object, protocol: int | None = None) -> Path:
    path = folder / "scene.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def dump_bytes(folder: Path, data: bytes) -> Path:
    path = folder / "scene.pkl"
    path.write_bytes(data)
    return path


def dump_torch(folder: Path, form: str) -> Path:
    path = dump_bytes(folder, zlib.decompress(base64.b64decode(TORCH[form])))
    return path.rename(folder / "abc.pkl")


# What is read


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write_pickle(tmp_path, ONE)
    assert path == tmp_path / "scene.pkl"
    assert list(tmp_path.iterdir()) == [path]
    read = read_pickle(path)
    assert same(read, ONE)
    assert read.states.flags.writeable
    assert read.object_ids.flags.writeable


def test_what_is_written_is_what_trajtok_loads(tmp_path: Path) -> None:
    data = write_pickle(tmp_path, ONE).read_bytes()
    loaded = pickle.loads(data)
    assert loaded.keys() == {"simulated_states", "agent_id"}
    assert np.array_equal(loaded["simulated_states"], ONE.states)
    assert np.array_equal(loaded["agent_id"], ONE.object_ids)
    # NumPy 1, which it runs on, knows no numpy._core.
    assert b"numpy.core.multiarray" in data
    assert b"numpy._core" not in data


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int, dtype: str) -> None:
    content = {
        "simulated_states": ONE.states.astype(dtype),
        "agent_id": ONE.object_ids.astype(np.int32),
        "_scenario_id": np.str_("scene"),
    }
    assert same(read_pickle(dump(tmp_path, content, protocol)), ONE)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_in_fortran_order_and_arrays_not_contiguous(tmp_path: Path, protocol: int) -> None:
    for states in (np.asfortranarray(ONE.states), np.repeat(ONE.states, 2, axis=2)[:, :, ::2]):
        content = {**CONTENT, "simulated_states": states}
        assert same(read_pickle(dump(tmp_path, content, protocol)), ONE)


def test_an_ordered_dict_with_more_than_is_needed(tmp_path: Path) -> None:
    more = {"names": ["a", "b"], "score": np.float64(0.5), "n": 12345678901234567890, "flag": True}
    read = read_pickle(dump(tmp_path, collections.OrderedDict({**CONTENT, **more})))
    assert same(read, ONE)


@pytest.mark.parametrize(
    "name",
    ["scene_closedloop_wosac.pkl", "scenario_scene_closedloop_wosac.pkl"],
)
def test_closed_loop_files_of_catk(tmp_path: Path, name: str) -> None:
    content = {
        "agents_id": ONE.object_ids,
        "model_rollouts": {"baseline": {"rollouts": ONE.states}},
    }
    path = dump(tmp_path, content).rename(tmp_path / name)
    assert same(read_pickle(path), ONE)


def test_closed_loop_files_of_several_models(tmp_path: Path) -> None:
    models = {name: {"rollouts": ONE.states} for name in ("baseline", "controlnet")}
    path = dump(tmp_path, {"agents_id": ONE.object_ids, "model_rollouts": models})
    with pytest.raises(RolloutsError, match="2 models: 'baseline', 'controlnet'"):
        read_pickle(path)


@pytest.mark.parametrize("form", ["tensors", "views of larger storages", "tensors of a GPU"])
def test_torch_tensors_without_torch(tmp_path: Path, form: str) -> None:
    read = read_pickle(dump_torch(tmp_path, form))
    assert same(read, Rollouts("abc", np.array([7, 3]), TORCH_STATES))


def test_a_torch_tensor_that_repeats_its_elements(tmp_path: Path) -> None:
    read = read_pickle(dump_torch(tmp_path, "expanded tensor"))
    expected = np.broadcast_to(TORCH_STATES[:1], (5, 2, 4, 4))
    assert same(read, Rollouts("abc", np.array([7, 3]), expected))


def test_torch_tensors_of_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"asks for torch\.BFloat16Storage.*\.numpy\(\)"):
        read_pickle(dump_torch(tmp_path, "bfloat16"))


@pytest.mark.parametrize("key", ["scenario_id", "_scenario_id"])
def test_content_of_another_scenario(tmp_path: Path, key: str) -> None:
    with pytest.raises(RolloutsError, match=r"scene\.pkl: holds scenario 'other'"):
        read_pickle(dump(tmp_path, {**CONTENT, key: "other"}))


@pytest.mark.parametrize("key", ["agent_id", "simulated_states"])
def test_a_missing_key(tmp_path: Path, key: str) -> None:
    content = {k: v for k, v in CONTENT.items() if k != key}
    with pytest.raises(RolloutsError, match=rf"scene\.pkl: has no key '{key}'"):
        read_pickle(dump(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds list, expected a dict"),
        (None, "holds None, expected a dict"),
        ({**CONTENT, "agent_id": [7, 107, 207, 307]}, "agent_id is list, not an array"),
        ({**CONTENT, "agent_id": np.arange(4.0)}, "agent_id is an array of float64"),
        ({**CONTENT, "simulated_states": "states"}, "simulated_states is str"),
        ({**CONTENT, "simulated_states": np.zeros((1, 4, 1, 4), int)}, "is an array of int64"),
        ({**CONTENT, "simulated_states": np.zeros((4, 1, 4))}, "states must be"),
    ],
)
def test_content_of_another_kind(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(WosacError, match=said):
        read_pickle(dump(tmp_path, content))


def test_an_archive_of_torch_save(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"an archive of torch\.save"):
        read_pickle(dump_bytes(tmp_path, b"PK\x03\x04..."))


# What is refused


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("place", ["alone", "beside", "as key"])
@pytest.mark.parametrize(
    ("function", "argument", "named"),
    [
        (os.system, "touch pwned", r"(posix|nt)\.system"),
        (eval, "open('pwned', 'w')", r"builtins\.eval"),
        (subprocess.check_output, ["touch", "pwned"], r"subprocess\.check_output"),
    ],
)
def test_no_function_is_called(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: int,
    place: str,
    function: Any,
    argument: Any,
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = Calls(function, argument)
    content = {"alone": bomb, "beside": {**CONTENT, "x": [bomb]}, "as key": {bomb: 1}}[place]
    path = dump(tmp_path, content, protocol)
    with pytest.raises(FormatError, match=rf"scene\.pkl: asks for {named}, which"):
        read_pickle(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "instructions",
    [
        pytest.param(b"cos\nsystem\n(S'touch pwned'\ntR.", id="protocol 0"),
        pytest.param(b"\x80\x02(S'touch pwned'\nios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.", id="OBJ"),
        pytest.param(b"\x80\x04cnumpy\ndtype\n\x8c\x02f4\x85\x81.", id="NEWOBJ"),
        pytest.param(b"\x80\x02\x82\x01.", id="EXT1"),
        pytest.param(b"Pid\n.", id="PERSID"),
        pytest.param(b"\x80\x05\x97.", id="NEXT_BUFFER"),
    ],
)
def test_other_instructions(tmp_path: Path, instructions: bytes) -> None:
    with pytest.raises(FormatError, match=r"scene\.pkl: asks for (os\.system|the pickle instruct)"):
        read_pickle(dump_bytes(tmp_path, instructions))


def test_a_known_global_is_no_way_to_others(tmp_path: Path) -> None:
    # numpy.ndarray, called with a shape, would reserve it; here it is a mere name.
    call = b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93J\xff\xff\xff\x7f\x85R."
    with pytest.raises(FormatError, match="a call of what is no function"):
        read_pickle(dump_bytes(tmp_path, call))
    for name in ("numpy.load", "numpy.core.multiarray.frombuffer", "torch.load"):
        module, function = name.rsplit(".", 1)
        with pytest.raises(FormatError, match=f"asks for {name},"):
            read_pickle(dump_bytes(tmp_path, f"\x80\x02c{module}\n{function}\n.".encode("latin1")))


def test_a_torch_storage_reaches_no_further(tmp_path: Path) -> None:
    nested = pickle.dumps(Calls(os.system, "touch pwned"), protocol=2)
    outer = b"\x80\x04\x8c\x0dtorch.storage\x8c\x10_load_from_bytes\x93B"
    path = dump_bytes(tmp_path, outer + struct.pack("<I", len(nested)) + nested + b"\x85R.")
    with pytest.raises(FormatError, match=r"asks for (posix|nt)\.system"):
        read_pickle(path)


@pytest.mark.parametrize(
    "array", [np.array([Calls(eval, "1")], dtype=object), np.zeros(3, [("x", "<f4")])]
)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_objects(tmp_path: Path, array: Any, protocol: int) -> None:
    with pytest.raises(FormatError, match=r"scene\.pkl: asks for an array of"):
        read_pickle(dump(tmp_path, {**CONTENT, "agent_id": array}, protocol))


# What is damaged, and what claims too much


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    for data in (pickle.dumps(CONTENT), zlib.decompress(base64.b64decode(TORCH["tensors"]))):
        for length in range(len(data)):
            with pytest.raises(FormatError, match=r"scene\.pkl: "):
                read_pickle(dump_bytes(tmp_path, data[:length]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_does_more_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    form = data.draw(st.sampled_from(["tensors", "expanded tensor", "arrays"]))
    whole = bytearray(
        pickle.dumps(CONTENT)
        if form == "arrays"
        else zlib.decompress(base64.b64decode(TORCH[form]))
    )
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = dump_bytes(tmp_path_factory.mktemp("damaged"), bytes(whole))
    try:
        read = read_pickle(path)
    except WosacError:
        return
    assert read.states.ndim == 4


@pytest.mark.parametrize(
    "instructions",
    [
        pytest.param(b"\x80\x04r\xff\xff\xff\x7fN.", id="memo without a stack"),
        pytest.param(b"\x80\x04Nr\xff\xff\xff\x7f.", id="memo of 2**31 slots"),
        pytest.param(
            b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.", id="bytearray of 1 TB"
        ),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", id="bytes of 1 TB"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", id="frame of 1 TB"),
        pytest.param(b"\x80\x04" + b"}" * 1_000_000 + b".", id="a million dicts"),
        pytest.param(
            # t = ((), ()), 100 times over; then {t: None}, whose hash takes 2**100 steps.
            b"\x80\x04))\x86" + b"q\x00h\x00\x86" * 100 + b"q\x00}h\x00Ns.",
            id="a key that takes for ever to hash",
        ),
    ],
)
def test_what_is_claimed_is_not_reserved(tmp_path: Path, instructions: bytes) -> None:
    path = dump_bytes(tmp_path, instructions)
    tracemalloc.start()
    with pytest.raises(WosacError):
        read_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("claimed", [b"K\x04K\x05K\x04", b"J\xff\xff\xff\x7f" * 2 + b"K\x04"])
def test_shapes_are_held_against_the_bytes(tmp_path: Path, claimed: bytes) -> None:
    data = pickle.dumps(CONTENT)
    shape = b"(K\x03K\x04K\x05K\x04t"
    assert data.count(shape) == 1
    path = dump_bytes(tmp_path, data.replace(shape, b"(K\x7f" + claimed + b"t"))
    with pytest.raises(FormatError, match="bytes are no float32"):
        read_pickle(path)


def test_a_tensor_cannot_reach_outside_its_storage(tmp_path: Path) -> None:
    data = zlib.decompress(base64.b64decode(TORCH["tensors"]))
    strides = b"(K\x20K\x10K\x04K\x01t"
    assert data.count(strides) == 1
    path = dump_bytes(tmp_path, data.replace(strides, b"(K\x21K\x10K\x04K\x01t"))
    with pytest.raises(FormatError, match="reaches outside its storage"):
        read_pickle(path)


def test_a_tensor_cannot_repeat_itself_without_bounds(tmp_path: Path) -> None:
    data = zlib.decompress(base64.b64decode(TORCH["expanded tensor"]))
    size = b"(K\x05K\x02K\x04K\x04t"
    assert data.count(size) == 1
    path = dump_bytes(tmp_path, data.replace(size, b"(J\xff\xff\xff\x7fK\x02K\x04K\x04t"))
    with pytest.raises(FormatError, match="claims 274877906816 bytes"):
        read_pickle(path)
