"""Attacks: PGD inside training, and everything that evaluation attacks a network with.

A budget is a frozen dataclass per attack; `run_attack` runs any of them and answers with one result.

    result = run_attack(network, image, label, make_attack("autoattack", AttackBase(8 / 255, 2 / 255)), seed=0)
    result.robust_accuracy()

| module | what |
| --- | --- |
| `names`, `registry` | names such as `pgd-20-l2`, and the budget that a name means; `names` needs no torch |
| `run` | checks, batches, the result |
| `victim`, `goal`, `draws`, `geometry`, `losses`, `checks` | what attacks are made of |
| `pgd` | training's hot path, and PGD with restarts and early stop |
| `deepfool`, `carlini`, `fab` | smallest perturbation |
| `apgd`, `square`, `autoattack` | parameter-free attacks, and their sequence |
| `acceptance`, `consistent`, `detection` | reasoning labels: the rule, the attack on class and reasons, detection |
| `session_network`, `randomised` | ONNX files, and networks that draw noise, as networks to attack |
| `store` | adversarial examples on disk, verified |
"""
