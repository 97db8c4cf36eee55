"""The site: what it adds to Sphinx (`extension`), and what its pages run (`session`), for which no Sphinx is needed."""
