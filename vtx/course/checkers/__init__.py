"""One module for each lesson that has an exercise: ``lesson_NN.check(lab)``."""
