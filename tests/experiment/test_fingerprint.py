"""A change of one element of anything that a run reads gives another key; what has no content is refused by name."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import io
import math
import os
import random
import subprocess
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import torch

from reprolib.experiment.fingerprint import Fingerprint, UnreadableError
from reprolib.experiment.sources import Sources, source_hash
from reprolib.theory import checks, geometry
from reprolib.training import TrainConfig

SOURCES = Sources()


def of(value, where="x"):
    return Fingerprint(SOURCES).of(value, where)


def make(source: str, name: str = "compute", **names):
    """A function as a notebook defines it: in `__main__`."""
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace[name]


def reading(value):
    """A notebook's function that reads the global `x`."""
    return make("def compute():\n    return {'y': x}", x=value)


@dataclasses.dataclass
class Point:
    at: object
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Images:
    fingerprint: str
    images: torch.Tensor


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b


class Plain:
    factor = 2

    def __init__(self, value):
        self.value = value

    def scaled(self):
        return self.factor * self.value


class Net(torch.nn.Module):
    def __init__(self, weight=0.0, buffer=0.0, plain=1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, weight]))
        self.register_buffer("seen", torch.tensor([buffer]), persistent=False)
        self.plain = plain


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Labelled(float):
    def __new__(cls, value, low=0.0):
        made = super().__new__(cls, value)
        made.low = low
        return made


Pair = collections.namedtuple("Pair", "a b")


def images(last=3):
    return torch.tensor([[0, 1], [2, last]], dtype=torch.uint8)


def inner(value):
    return lambda: value


def started(seed, draws=0):
    generator = torch.Generator().manual_seed(seed)
    torch.rand(draws, generator=generator)
    return generator


def ring(value):
    one, two = Plain(value), Plain(1)
    one.other, two.other = two, one
    return one


def module(**names):
    made = types.ModuleType("helpers_of_a_notebook")
    made.__dict__.update(names)
    return made


# Each kind twice: equal contents made twice, and contents with one element changed.
KINDS = {
    "int": (lambda: 1, lambda: 2),
    "int and bool": (lambda: 1, lambda: True),
    "int and float": (lambda: 1, lambda: 1.0),
    "float": (lambda: 0.1, lambda: 0.1 + 1e-17 * 2),
    "zeros": (lambda: 0.0, lambda: -0.0),
    "nan": (lambda: math.nan, lambda: math.inf),
    "text": (lambda: "a", lambda: "b"),
    "text and bytes": (lambda: "a", lambda: b"a"),
    "list": (lambda: [1, [2, 3]], lambda: [1, [2, 4]]),
    "list and tuple": (lambda: [1], lambda: (1,)),
    "nesting": (lambda: [[1], 2], lambda: [[1, 2]]),
    "dict": (lambda: {"a": {"b": 1}}, lambda: {"a": {"b": 2}}),
    "keys": (lambda: {1: "x"}, lambda: {"1": "x"}),
    "set": (lambda: {"a", "b", "c"}, lambda: {"a", "b", "d"}),
    "frozenset": (lambda: frozenset({("a", 1)}), lambda: frozenset({("a", 2)})),
    "tensor": (images, lambda: images(4)),
    "dtype": (images, lambda: images().int()),
    "shape": (images, lambda: images().reshape(4)),
    "bfloat16": (lambda: torch.ones(2, dtype=torch.bfloat16), lambda: torch.ones(2, dtype=torch.float16)),
    "bool tensor": (lambda: torch.tensor([True, False]), lambda: torch.tensor([True, True])),
    "complex tensor": (lambda: torch.tensor([1j]).conj(), lambda: torch.tensor([1j])),
    "scalar tensor": (lambda: torch.tensor(1.0), lambda: torch.tensor(1.5)),
    "gradient wanted": (lambda: torch.ones(2), lambda: torch.ones(2, requires_grad=True)),
    "parameter": (lambda: torch.nn.Parameter(torch.ones(2)), lambda: torch.nn.Parameter(torch.zeros(2))),
    "tensors in a list": (lambda: [images(), {"a": images()}], lambda: [images(), {"a": images(4)}]),
    "array": (lambda: np.arange(6).reshape(2, 3), lambda: np.array([[0, 1, 2], [3, 4, 6]])),
    "array dtype": (lambda: np.zeros(2, np.int32), lambda: np.zeros(2, np.float32)),
    "array of objects": (lambda: np.array([1, "a"], object), lambda: np.array([1, "b"], object)),
    "structured array": (lambda: np.zeros(1, "f4,i4"), lambda: np.ones(1, "f4,i4")),
    "masked array": (lambda: np.ma.array([1, 2], mask=[0, 1]), lambda: np.ma.array([1, 2], mask=[1, 0])),
    "numpy scalar": (lambda: np.float32(0.1), lambda: np.float64(0.1)),
    "dataclass": (lambda: Point([1]), lambda: Point([2])),
    "nested dataclass": (lambda: Point(Point(images())), lambda: Point(Point(images(4)))),
    "configuration": (lambda: TrainConfig(epochs=2), lambda: TrainConfig(epochs=3)),
    "data set": (lambda: Images("one", images()), lambda: Images("two", images())),
    "data set, inverted": (lambda: Images("one", images()), lambda: Images("one", 255 - images())),
    "slots": (lambda: Slotted(1, images()), lambda: Slotted(1, images(4))),
    "object": (lambda: Plain([1]), lambda: Plain([2])),
    "ring of objects": (lambda: ring(1), lambda: ring(2)),
    "namespace": (lambda: SimpleNamespace(a=1), lambda: SimpleNamespace(a=2)),
    "named tuple": (lambda: Pair(1, 2), lambda: Pair(1, 3)),
    "number with more": (lambda: Labelled(1.0, 0.5), lambda: Labelled(1.0, 0.6)),
    "ordered dict": (lambda: collections.OrderedDict(a=1), lambda: collections.OrderedDict(a=2)),
    "deque": (lambda: collections.deque([1], 3), lambda: collections.deque([1], 4)),
    "date": (lambda: datetime.date(2000, 1, 1), lambda: datetime.date(2000, 1, 2)),
    "enum": (lambda: Colour.RED, lambda: Colour.BLUE),
    "path": (lambda: Path("a/b"), lambda: Path("a/c")),
    "torch dtype": (lambda: torch.float32, lambda: torch.float64),
    "device": (lambda: torch.device("cpu"), lambda: torch.device("cuda", 0)),
    "weight": (lambda: Net(), lambda: Net(weight=1.0)),
    "buffer": (lambda: Net(), lambda: Net(buffer=1.0)),
    "attribute of a module": (lambda: Net(), lambda: Net(plain=2)),
    "training mode": (lambda: Net(), lambda: Net().eval()),
    "layers": (lambda: torch.nn.Sequential(torch.nn.ReLU()), lambda: torch.nn.Sequential(torch.nn.Tanh())),
    "torch generator": (lambda: started(0), lambda: started(1)),
    "torch generator, used": (lambda: started(0), lambda: started(0, draws=1)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda: np.random.default_rng(1)),
    "old numpy generator": (lambda: np.random.RandomState(0), lambda: np.random.RandomState(1)),
    "python generator": (lambda: random.Random(0), lambda: random.Random(1)),
    "closure": (lambda: inner(images()), lambda: inner(images(4))),
    "partial": (lambda: functools.partial(inner, images()), lambda: functools.partial(inner, images(4))),
    "partial by name": (lambda: functools.partial(inner, value=1), lambda: functools.partial(inner, value=2)),
    "bound method": (lambda: Plain(images()).scaled, lambda: Plain(images(4)).scaled),
    "bound builtin": (lambda: [1].count, lambda: [2].count),
    "default": (lambda: make("def compute(x=1): return x"), lambda: make("def compute(x=2): return x")),
    "keyword default": (lambda: make("def compute(*, x=1): return x"), lambda: make("def compute(*, x=2): return x")),
    "function attribute": (
        lambda: make("def compute(): return compute.a\ncompute.a = 1"),
        lambda: make("def compute(): return compute.a\ncompute.a = 2"),
    ),
    "method called": (lambda: make("def compute(t): return t.sum()"), lambda: make("def compute(t): return t.mean()")),
    "constant": (lambda: make("def compute(): return {'x': 1}"), lambda: make("def compute(): return {'x': 2}")),
    "constant set": (
        lambda: make("def compute(x): return x in {'a', 'b', 'c'}"),
        lambda: make("def compute(x): return x in {'a', 'b', 'd'}"),
    ),
    "class attribute": (
        lambda: make("class A:\n    f = 1\ndef compute(): return A.f"),
        lambda: make("class A:\n    f = 2\ndef compute(): return A.f"),
    ),
    "method": (
        lambda: make("class A:\n    def f(self): return 1\ndef compute(): return A().f()"),
        lambda: make("class A:\n    def f(self): return 2\ndef compute(): return A().f()"),
    ),
    "property": (
        lambda: make("class A:\n    @property\n    def f(self): return 1\ndef compute(): return A().f"),
        lambda: make("class A:\n    @property\n    def f(self): return 2\ndef compute(): return A().f"),
    ),
    "static method": (
        lambda: make("class A:\n    @staticmethod\n    def f(): return 1\ndef compute(): return A.f()"),
        lambda: make("class A:\n    @staticmethod\n    def f(): return 2\ndef compute(): return A.f()"),
    ),
    "base class": (
        lambda: make("class A:\n    f = 1\nclass B(A): pass\ndef compute(): return B.f"),
        lambda: make("class A:\n    f = 2\nclass B(A): pass\ndef compute(): return B.f"),
    ),
    "class of an object": (
        lambda: make("class A:\n    f = 1\na = A()\ndef compute(): return a.f"),
        lambda: make("class A:\n    f = 2\na = A()\ndef compute(): return a.f"),
    ),
    "dataclass field": (
        lambda: make("import dataclasses\n@dataclasses.dataclass\nclass A:\n    f: int = 1\ndef compute(): return A()"),
        lambda: make("import dataclasses\n@dataclasses.dataclass\nclass A:\n    f: int = 2\ndef compute(): return A()"),
    ),
    "cached helper": (
        lambda: make("import functools\n@functools.lru_cache\ndef f(): return 1\ndef compute(): return f()"),
        lambda: make("import functools\n@functools.lru_cache\ndef f(): return 2\ndef compute(): return f()"),
    ),
    "decorated helper": (
        lambda: make("import torch\n@torch.no_grad()\ndef f(): return 1\ndef compute(): return f()"),
        lambda: make("import torch\n@torch.no_grad()\ndef f(): return 2\ndef compute(): return f()"),
    ),
    "nested function": (
        lambda: make("def compute(): return (lambda: (lambda: x)())()", x=images()),
        lambda: make("def compute(): return (lambda: (lambda: x)())()", x=images(4)),
    ),
    "comprehension": (
        lambda: make("def compute(): return [x for _ in range(2)]", x=1),
        lambda: make("def compute(): return [x for _ in range(2)]", x=2),
    ),
    "body of a local class": (
        lambda: make("def compute():\n    class A:\n        f = x\n    return A.f", x=1),
        lambda: make("def compute():\n    class A:\n        f = x\n    return A.f", x=2),
    ),
    "name in a notebook's module": (
        lambda: make("def compute(): return helpers.scale", helpers=module(scale=1)),
        lambda: make("def compute(): return helpers.scale", helpers=module(scale=2)),
    ),
    "a notebook's module by getattr": (
        lambda: make("def compute(name): return getattr(helpers, name)", helpers=module(scale=1)),
        lambda: make("def compute(name): return getattr(helpers, name)", helpers=module(scale=2)),
    ),
    "function in a notebook's module": (
        lambda: make("def compute(): return helpers.f()", helpers=module(f=make("def f(): return 1", "f"))),
        lambda: make("def compute(): return helpers.f()", helpers=module(f=make("def f(): return 2", "f"))),
    ),
    "attribute of a namespace": (
        lambda: make("def compute(): return p.steps", p=SimpleNamespace(steps=1)),
        lambda: make("def compute(): return p.steps", p=SimpleNamespace(steps=2)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_one_element_is_another_key(kind):
    same, other = KINDS[kind]
    assert of(same()) == of(same())
    assert of(same()) != of(other())
    assert of(reading(same())) == of(reading(same()))
    assert of(reading(same())) != of(reading(other()))


# cloudpickle does not send these two from here: the name in the class's body, and a wrapper in C of no module.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("body of a local class", "cached helper")])
def test_a_worker_finds_the_same_key(kind):
    value = reading(KINDS[kind][0]())
    assert of(cloudpickle.loads(cloudpickle.dumps(value))) == of(value)


def test_strides_do_not_count_and_changes_in_place_do():
    wide = torch.arange(12).reshape(3, 4)
    assert of(wide.T) == of(wide.T.contiguous())
    array = np.arange(12).reshape(3, 4)
    assert of(array[:, ::2]) == of(array[:, ::2].copy())
    data = Images("one", images())
    before = of(data)
    data.images.sub_(1)
    assert of(data) != before


def test_what_is_shared_here_and_copied_in_a_worker_has_one_key():
    shared = [1, images()]
    assert of([shared, shared]) == of([[1, images()], [1, images()]])


def test_what_does_not_shape_a_result_is_left_out():
    assert of(make("def compute():\n    '''One.'''\n    return 1")) == of(make("# two\n\ndef compute():\n    return 1"))
    # Of a namespace or a module only what is read; attributes with the name of a global say nothing of it.
    source = "def compute():\n    return p.steps + value.scale"
    one = make(source, p=SimpleNamespace(steps=1, seeds=[0]), value=Plain(1), scale=1)
    two = make(source, p=SimpleNamespace(steps=1, seeds=[0, 1]), value=Plain(1), scale=2)
    assert of(one) == of(two)


def test_a_variable_of_the_outer_function_is_no_global_of_that_name():
    source = "def compute():\n    m = 1\n    def inner():\n        return m.real\n    return inner()"
    alone = of(make(source))
    for function in (make(source, m=5), make(source, m=6), cloudpickle.loads(cloudpickle.dumps(make(source, m=5)))):
        assert of(function) == alone
    # what is captured from outside counts, also where only an inner function reads it
    outer = "def outer(m):\n    def compute():\n        return (lambda: m)()\n    return compute"
    five, six = (make(outer, "outer", m=0)(value) for value in (5, 6))
    assert of(five) != of(six) and of(five) == of(make(outer, "outer", m=1)(5))


def test_a_docstring_that_the_code_reads_counts():
    source = "def compute():\n    '''{0}'''\n    return '{0}'"
    assert of(make(source.format("a"))) != of(make(source.format("b")))


def test_code_does_not_count_for_the_settings():
    def settings(factor):
        one = make(f"class A:\n    f = {factor}\ndef compute(): return A()")()
        return Fingerprint(None).arguments({"one": one, "seed": 1})

    assert settings(1) == settings(2) != Fingerprint(None).arguments({"one": 0, "seed": 1})
    assert Fingerprint(None).arguments({"a": 1, "b": 2}) == Fingerprint(None).arguments({"b": 2, "a": 1})


def test_a_file_counts_by_its_content(tmp_path):
    for folder, content in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.txt").write_text(content)
    one, two, three = (of(tmp_path / folder / "list.txt") for folder in ("one", "two", "three"))
    assert one == two != three


def test_a_recursive_function_and_a_pair_that_call_each_other():
    source = "def compute(n=3):\n    return n if n == 0 else other(n - 1)\ndef other(n):\n    return compute(n) + {}"
    assert of(make(source.format(1))) == of(make(source.format(1))) != of(make(source.format(2)))


def generator_in_progress():
    yield 1


REFUSED = {
    "open file": lambda: open(os.devnull),  # noqa: SIM115
    "lock": threading.Lock,
    "generator": generator_in_progress,
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "tensor without elements": lambda: torch.empty(2, device="meta"),
    "frame": sys._getframe,
    "view of memory": lambda: memoryview(b"a"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_content_is_refused_by_the_name_of_its_variable(kind):
    value = REFUSED[kind]()
    pattern = rf"^{{}} is of type [\w.]*{type(value).__name__}, which has no content"
    with pytest.raises(UnreadableError, match=pattern.format("x")):
        of(reading(value), "")
    held = make("def helper():\n    return box\ndef compute():\n    return helper()", box=Plain({"log": value}))
    with pytest.raises(UnreadableError, match=pattern.format(r"helper -> box\.value\['log'\]")):
        of(held, "")
    with pytest.raises(UnreadableError, match=pattern.format("value")):
        of(inner(value), "")
    if hasattr(value, "close"):
        value.close()


@pytest.mark.parametrize("name", ["globals", "eval", "exec"])
def test_names_that_are_looked_up_at_run_time_are_refused(name):
    with pytest.raises(UnreadableError, match=rf"{name}\(\) reads names"):
        of(make(f"def compute(): return {name}('x')"), "")


def test_memory_files_and_iterators_count_by_content():
    assert of(io.BytesIO(b"a")) == of(io.BytesIO(b"a")) != of(io.BytesIO(b"b"))
    assert of(iter([1, 2])) == of(iter([1, 2])) != of(iter([1, 3]))


def test_keys_are_the_same_in_every_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import enum, torch\n"
        "from reprolib.experiment.fingerprint import Fingerprint\n"
        "from reprolib.experiment.sources import Sources\n"
        "class Kind(enum.Enum):\n    A = 'a'\n"
        "class Net(torch.nn.Linear):\n    pass\n"
        "torch.manual_seed(0)\n"
        "names = {'one', 'two', 'three', 'four'}\n"
        "net = Net(2, 2)\n"
        "def compute(x=frozenset({'p', 'q', 'r'})):\n"
        "    return net, names, Kind.A, x in {'u', 'v', 'w'}, torch.relu\n"
        "print(Fingerprint(Sources()).of(compute, ''))\n"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
        found.add(ran.stdout)
    assert len(found) == 1


# --- the package's sources --------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    files = {
        "__init__.py": "",
        "a.py": "from .rooms import b\nX = 1\n",
        "rooms/__init__.py": "from .c import Y\n",
        "rooms/b.py": "def f():\n    from pack import d\n    return d.Z\n",
        "rooms/c.py": "Y = 1\n",
        "d.py": "Z = 1\n",
        "e.py": "import pack.rooms\n",
    }
    for name, text in files.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "pack"


@pytest.mark.parametrize(
    ("changed", "modules"),
    [("a.py", {"a"}), ("rooms/b.py", {"a"}), ("d.py", {"a"}), ("rooms/c.py", {"e", "a"}), ("e.py", {"e"})],
)
def test_a_module_counts_with_all_that_it_imports(package, changed, modules):
    before = {name: Sources(package).hash(f"pack.{name}") for name in ("a", "e")}
    path = package / changed
    path.write_text('"""Only words."""\n' + path.read_text() + "# and more\n")
    assert {name: Sources(package).hash(f"pack.{name}") for name in ("a", "e")} == before
    path.write_text(path.read_text() + "W = 2\n")
    after = {name: Sources(package).hash(f"pack.{name}") for name in ("a", "e")}
    assert {name for name in after if after[name] != before[name]} == modules


def test_sources_are_those_of_the_moment_they_were_read(package):
    sources = Sources(package)
    (package / "a.py").write_text("X = 2\n")
    assert sources.hash("pack.a") != Sources(package).hash("pack.a")


def test_the_whole_package_has_one_hash(package):
    before = source_hash(package)
    (package / "note.txt").write_text("no code")
    assert source_hash(package) == before
    (package / "d.py").rename(package / "f.py")
    assert source_hash(package) != before


def test_the_hash_of_the_package_counts_the_tuned_values(tmp_path, monkeypatch):
    monkeypatch.setenv("REPROLIB_ROOT", str(tmp_path))
    before = source_hash()
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "tuned.yaml").write_text("numbers: {}\n")
    assert source_hash() != before


def test_package_code_counts_by_its_source_and_what_it_captured():
    source = "def compute():\n    return part"
    other = Sources()
    other._text["reprolib.theory.geometry"] = (b"changed = True\n", False)
    for part in (geometry, geometry.angle_between):
        function = make(source, part=part)
        assert of(function) != Fingerprint(other).of(function, "")
        assert of(make(source, part=checks.check_bound)) == Fingerprint(other).of(
            make(source, part=checks.check_bound), ""
        )
