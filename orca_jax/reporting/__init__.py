"""Tables, figures and pages of measured scores and of the paper's published cells."""
