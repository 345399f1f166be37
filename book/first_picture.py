"""Draws book/first_picture.png, the first thing that a reader sees."""

from pathlib import Path

import torch

from gradcam_nb import explain, grid

torch.set_num_threads(1)
coffee = explain("photo:coffee")
asked = [explain("photo:astronaut", target=target) for target in ("football helmet", "space shuttle")]
pictures = [coffee.picture, coffee.overlay(), coffee.heat_map, asked[0].picture, *(e.overlay() for e in asked)]
titles = [f"saw: {coffee.top[0]}", f"{coffee.method}: {coffee.target.name}", coffee.where, f"saw: {asked[0].top[0]}"]
titles += [f"asked: {e.target.name}" for e in asked]
grid(pictures, titles, columns=3, size=2.4).savefig(Path(__file__).with_suffix(".png"), dpi=80)
