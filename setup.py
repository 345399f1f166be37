"""Hands what settings.ini says (version, requirements, commands) to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = config["DEFAULT"]

setup(
    version=settings["version"],
    description=settings["description"],
    keywords=settings["keywords"].split(),
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={name: settings[f"{name}_requirements"].split() for name in ("samples", "dev")},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    scripts=["book/gradcam-nb-filter"],
    packages=find_packages(include=["gradcam_nb", "gradcam_nb.*"]),
    package_data={"gradcam_nb": ["samples/weights/*.safetensors"]},
    url=settings["git_url"],
)
