"""Visual entropies of whole data sets, computed once and kept beside the images.

Needs the extra: ``pip install "durian-adv[entropy]"``. The command ``durian-adv entropy`` is the usual way in.
"""

from durian_adv.data.scoring.encoders import Encoder, load_encoder
from durian_adv.data.scoring.scorer import EntropyScorer

__all__ = ["Encoder", "EntropyScorer", "load_encoder"]
