"""Where models come from: one file per source, behind the protocol in `base`; `registry` lists them.

`uris` judges a `uri` offline, `fetching/` has what the sources share, `hub/` what is particular to a hub.
"""
