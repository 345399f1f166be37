"""Draws the first pictures that a reader sees, in the README and on the first page: book/first_picture.png and book/two_questions.png."""

from pathlib import Path

from gradcam_nb import explain, grid

FOLDER = Path(__file__).parent

(FOLDER / "first_picture.png").write_bytes(explain("photo:coffee").show()._repr_png_())
asked = [explain("photo:astronaut", target=target) for target in ("football helmet", "space shuttle")]
titles = [f"saw: {asked[0].top[0]}", *(f"asked: {e.target.name}" for e in asked)]
figure = grid([asked[0].picture, *(e.overlay() for e in asked)], titles, columns=3, size=2.4)
(FOLDER / "two_questions.png").write_bytes(figure._repr_png_())
