"""The ground floor: paths, selectors, exact selection, bit packing. No policy lives here."""
