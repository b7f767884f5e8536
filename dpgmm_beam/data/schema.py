"""Names of Parquet columns, said once."""

LABEL, IMAGE, EMBEDDING, SOURCE, UNIT = "label", "image", "embedding", "source", "unit"
"""Of an input and of the embed cache; a release has the label and the embedding, too.
`unit` is the id of a row's privacy unit."""

PICTURE = "picture"
"""Of the embed cache, where the release is to be decodable: cosine coefficients of the image
(`dpgmm_beam.encoders.dct`)."""

PROBABILITIES = "label_probabilities"
"""Of a release: the teacher's, in the order of the declared classes.  `label` is the likeliest."""

COMPONENT_CLASS, COMPONENT = "component_class", "component"
"""Of a release: the class, and which of its components, in which a row was drawn."""
