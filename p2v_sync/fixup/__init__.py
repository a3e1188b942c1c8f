"""What makes a copied guest boot as a virtual machine: inspection, plans, and their application."""
