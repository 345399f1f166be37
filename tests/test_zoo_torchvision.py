"""Every family of torchvision's classifiers: nothing told, see zoo.py."""

import pytest
import torchvision
import zoo
from torchvision.models import get_model_builder, list_models


def test_nearly_all_work_and_the_book_says_which():
    zoo.check("torchvision")


@pytest.mark.slow
def test_the_layouts_are_measured_too():
    zoo.check_layouts("torchvision")


def test_no_family_is_missing():
    modules = {get_model_builder(name).__module__ for name in list_models(module=torchvision.models)}
    assert modules == {get_model_builder(name).__module__ for name, _, _ in zoo.TORCHVISION.values()}


def test_a_scene_is_explained_in_one_run():
    zoo.check_runs("torchvision")


def test_what_is_passed_over_remembers_nothing():
    zoo.check_forgetful("torchvision")
