"""Texts to compare a model's results on in another dtype: of every length, of several kinds and languages."""

SENTENCES = (
    "Yes.",
    "Two of the lamps in the hall are broken.",
    "def area(width, height): return width * height",
    "Der Zug nach Lindau fährt heute von Gleis neun.",
    "The court found that the lease had ended in March and dismissed the claim for later rent.",
    "Le marché ferme à midi, mais la boulangerie reste ouverte.",
    "Order 4471-B: 12 boxes, 3.5 kg each, deliver before 2021-06-30!",
    "She said nothing for a while, then laughed, and asked whether anybody had seen the dog.",
    "Water boils at a lower temperature on a mountain because the air presses less upon it.",
    "この店は月曜日が休みです。",
    "Install the package, set the variable, and start the server again; the log says which port it took.",
    "an uneven, muddy, half-forgotten path",
)
TEXTS = (*SENTENCES, " ".join(SENTENCES[1:6]), " ".join(SENTENCES), " ".join(reversed(SENTENCES)))
"""Up to a few hundred tokens."""
