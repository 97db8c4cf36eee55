"""Normal latents that few others depend on each: chains, trees and nets, by sparse elimination."""
