"""The first files of a project and of a model: `evergreen init` and `evergreen new`.

files       written whole or not at all, and never over another file
projects    the skeleton of a project
samples     the rows of a sample, in DuckDB: what its columns look like, and what they say about the label
guesses     a draft from that: time, keys, kind, inputs, suspected leaks. Pure
events      files of events beside the sample, as sources and views of the draft. Pure
rendering   the files of a model, from templates
delivery    sample and events as raw files, one for each period
tutorial    the table of the tutorial, which ships with the package
"""
