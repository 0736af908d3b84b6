"""What proposes points: mixtures, estimators, surrogates, rejection control."""
