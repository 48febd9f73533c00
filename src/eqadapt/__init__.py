"""Equivariant adaptation of pretrained models: one equation, one protocol.

A group ``G`` acts on inputs; a backbone ``p`` is made equivariant as

    f(x) = sum over g of  w(g | x) * g . p(g^-1 . x)        with  w(hg | h.x) = w(g | x)

and the methods of the family differ only in who scores the poses and how scores become weights.
The ``g`` before ``p`` turns outputs as the input was turned. Logits are the same in every frame, so
``Symmetrized`` leaves it out and returns what ``p`` says of the canonical image. Outputs with
places are turned by whoever has them: maps by ``Symmetrized.restore``, points and boxes by
``eqadapt.groups.points.act_on_points``.

Importing this package is cheap: torch and the other heavy libraries load with the modules that use
them.
"""

__version__ = "0.1.0"
