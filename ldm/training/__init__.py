"""Training: stages that say what is learnt, and one trainer that runs any of them."""
