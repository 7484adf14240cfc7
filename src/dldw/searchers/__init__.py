"""Searchers: one method per file."""

from dldw.searchers.cmaes import CMAES
from dldw.searchers.differential_evolution import DifferentialEvolution
from dldw.searchers.genetic_algorithm import GeneticAlgorithm
from dldw.searchers.hill_climb import HillClimb
from dldw.searchers.particle_swarm import ParticleSwarm
from dldw.searchers.random_search import RandomSearch

__all__ = ["CMAES", "DifferentialEvolution", "GeneticAlgorithm", "HillClimb", "ParticleSwarm", "RandomSearch"]
