"""Data sets: where they come from, how they are checked, and the one form all others read.

``registry`` names the sources (one module of ``sources`` each), ``raw`` brings the archive of one
into ``data/raw/<dataset>`` and checks it, ``preparation`` turns it into
``data/prepared/<dataset>/{train,validation,test}.safetensors``, and ``prepared`` reads those.
"""
