"""The schema of several tasks, as a configuration gives it."""

from __future__ import annotations

import pytest

from vision.errors import InputError
from vision.labels import LabelSchema

GIVEN = {"damage": {"classes": ["little", "mild", "severe"], "ordinal": True}, "useful": ["no", "yes"]}


def test_order_is_what_the_configuration_says():
    schema = LabelSchema.parse(GIVEN)
    assert schema.names == ["damage", "useful"]
    assert schema.tasks["damage"].ordinal
    assert not schema.tasks["useful"].ordinal
    assert LabelSchema.parse(schema.as_dict()) == schema
    assert schema.subset(["useful", "damage"]).names == ["useful", "damage"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "expected the tasks by name"),
        (["a"], "expected the tasks by name"),
        ({"a b": ["x", "y"]}, "'a b' is no name for a task"),
        ({"mean": ["x", "y"]}, "'mean' cannot be a task's name"),
        ({"a_entropy": ["x", "y"]}, "'a_entropy' cannot be a task's name"),
        ({"a": ["x", " y"]}, "a: a class is a text (in quotes, if need be), found ' y'"),
        ({"a": ["x"]}, "a needs a list of at least two classes, found ['x']"),
        ({"a": "xy"}, "a needs a list of at least two classes, found 'xy'"),
        ({"a": None}, "a needs a list of at least two classes, found None"),
        ({"a": ["x", "y", "x"]}, "a: the class 'x' is there more than once"),
        ({"a": [True, False]}, "a: a class is a text (in quotes, if need be), found True"),
        ({"a": ["x", ""]}, "a: a class is a text (in quotes, if need be), found ''"),
        ({"a": {"classes": ["x", "y"], "ordinal": "yes"}}, "a.ordinal is true or false, found 'yes'"),
        ({"a": {"classes": ["x", "y"], "order": True}}, "a takes classes and ordinal, found order"),
    ],
)
def test_unusable_schemas(given, words):
    with pytest.raises(InputError) as error:
        LabelSchema.parse(given)
    assert words in str(error.value)


def test_unknown_task_is_named():
    with pytest.raises(InputError, match=r"no task 'usefull' \(did you mean 'useful'\?\); there are damage, useful"):
        LabelSchema.parse(GIVEN).subset(["usefull"])
