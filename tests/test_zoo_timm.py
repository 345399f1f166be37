"""Families of timm's classifiers: nothing told, see zoo.py."""

import pytest
import timm
import zoo


def test_nearly_all_work_and_the_book_says_which():
    zoo.check("timm")


@pytest.mark.slow
def test_the_layouts_are_measured_too():
    zoo.check_layouts("timm")


def test_there_are_many_families():
    known = [timm.model_entrypoint(name).__module__ for name, _, _ in zoo.TIMM.values() if timm.is_model(name)]
    assert len(known) >= 60
    assert len(known) == len(set(known)), "two models of one family"


def test_a_scene_is_explained_in_one_run():
    zoo.check_runs("timm")


def test_what_is_passed_over_remembers_nothing():
    zoo.check_forgetful("timm")
