"""The closed vocabularies behind the factor profiles: words of Amazon Scientific's titles and of MovieLens's plots.

Under every value stand the words that mean it, in lower case and singular, with commas between. They match whole
words; a plural ``s`` may follow. Where a factor takes one value, the first in this order with a match wins, so the
special stands before the general.
"""

from __future__ import annotations

MATERIALS = {
    "stainless steel": "stainless steel, stainless, s/s",
    "steel": "steel, chrome vanadium, hss, cobalt, carbide, tungsten",
    "zinc": "zinc, galvanized",
    "aluminium": "aluminum, aluminium",
    "brass or bronze": "brass, bronze",
    "copper": "copper",
    "iron": "iron, ferrite",
    "other metal": "metal, titanium, nickel, silver plated, gold plated, chrome, tin, neodymium",
    "glass": "glass, borosilicate, pyrex, quartz",
    "PLA": "pla",
    "ABS": "abs",
    "PETG or PET": "petg, pet, polyester, mylar, t-glase",
    "flexible filament": "tpu, tpe, ninjaflex",
    "nylon": "nylon, polyamide",
    "PVC or vinyl": "pvc, vinyl",
    "polyethylene or polypropylene": "polyethylene, polypropylene, hdpe, ldpe, polyolefin, poly",
    "acrylic or polycarbonate": "acrylic, polycarbonate, plexiglass, hips",
    "PTFE or polyimide": "ptfe, teflon, kapton, polyimide",
    "other plastic": "plastic, resin, pva, polystyrene, delrin, acetal",
    "silicone": "silicone, siliconized",
    "rubber": "rubber, latex, nitrile, neoprene, epdm",
    "foam or sponge": "foam, sponge",
    "epoxy, urethane or cyanoacrylate": "epoxy, polyurethane, urethane, cyanoacrylate, super glue, krazy glue",
    "wood or paper": "wood, paper, cardboard, pulp",
    "cloth or fibre": "cloth, cotton, fabric, fiber, fiberglass, microfiber, wool",
    "ceramic or stone": "ceramic, porcelain, silica, diamond, aluminum oxide, silicon carbide",
    "carbon": "carbon, charcoal, graphite",
}

FORMS = {
    "filament": "filament",
    "3D printer": "3d printer, printer kit, printer",
    "glove or wear": "glove, mask, eyewear, goggle, glasses, gown, respirator, apron",
    "tape or strip": "tape, strip, velcro, hook and loop, hook & loop, fastener strip",
    "glue or sealant": "glue, adhesive, epoxy, caulk, sealant, cement, threadlocker, sealer, putty, super glue",
    "brush or toothbrush": "brush, toothbrush, brush head, broom",
    "vacuum cleaner": "vacuum, vac, vacuums",
    "bag or liner": "bag, liner, pouch, envelope",
    "bottle, jar or vial": "bottle, jar, vial, beaker, flask, cup, graduated cylinder, test tube, dish, carboy",
    "dropper, pipette or syringe": "dropper, pipette, syringe, needle",
    "terminal or connector": "terminal, connector, disconnect, splice, plug, socket, adapter, jumper, coupler, butt",
    "fitting or valve": "fitting, valve, elbow, nipple, tee, barb, coupling, faucet, bushing, hose clamp",
    "tube, hose or sleeve": "tubing, tube, hose, sleeve, pipe, heat shrink",
    "wire or cable": "wire, cable, rope, cord, lead",
    "screw, bolt or nail": (
        "screw, bolt, nut, washer, nail, brad, staple, rivet, anchor, stud, standoff, spacer, insert, pin, rod"
    ),
    "hook, bracket or hinge": "hook, bracket, hinge, latch, grommet, knob, brace, hanger, clip",
    "wheel, caster or bearing": "wheel, caster, bearing, pulley, belt, gear, dolly, cart, pulleys",
    "magnet": "magnet, magnets",
    "meter or gauge": (
        "meter, multimeter, gauge, caliper, micrometer, thermometer, tester, scale, hydrometer, refractometer, "
        "indicator, oscilloscope, detector, hygrometer, level, ruler, stethoscope, otoscope, thermostat, monitor, "
        "probe, imager, protractor, counter"
    ),
    "camera or microscope": "camera, endoscope, borescope, microscope, loupe, magnifier, scanner, slide",
    "electronic board or module": (
        "board, module, breadboard, shield, driver, controller, regulator, converter, relay, sensor, arduino, pcb, "
        "amplifier, switch, display, power supply, motor"
    ),
    "electronic part": "resistor, capacitor, diode, transistor, led, potentiometer, ic, heatsink, fuse, laser",
    "hot end or nozzle": "hotend, hot end, nozzle, extruder, heater block, heater, bed",
    "drill, cutter or abrasive": (
        "drill, bit, mill, tap, die, cutter, disc, grinding, sanding, file, blade, bur, burr, abrasive, scissor, "
        "shear, scalpel, steel wool, flap"
    ),
    "hand tool": "tool, plier, vise, clamp, forcep, tweezer, hemostat, grabber, jack, wrench, crimper, mirror",
    "spray, oil or cleaner": (
        "spray, cleaner, lubricant, oil, grease, wipe, toothpaste, soap, gel, wax, cream, solution, acid, powder, "
        "coating, remover, liquid, paste"
    ),
    "sheet, film or label": "sheet, film, label, sticker, sign, paper, mat, plate, pad, wrap, towel, tag",
    "container or rack": "box, case, can, container, trash can, bin, rack, dispenser, bucket, holder, shelf, tray",
}

USES = {
    "3D printing": "3d printer, 3d print, 3d printing, reprap, makerbot, prusa, filament, extruder, hotend, ramps, 3d",
    "teeth and mouth": "toothbrush, toothpaste, dental, tooth, teeth, oral, mouth, sonicare, floss",
    "medicine and first aid": (
        "medical, first aid, surgical, stethoscope, exam, bandage, nurse, medicine, emt, cpr, tens, hemostat, forcep, "
        "sterile, wound, otoscope, patient, syringe, tourniquet"
    ),
    "brewing and food": (
        "brew, homebrew, wine, beer, food, kitchen, coffee, meat, cooking, grill, hydrometer, moonshine, butcher, "
        "cake, candy, syrup"
    ),
    "laboratory": (
        "lab, laboratory, microscope, beaker, flask, pipette, petri, ph, graduated, litmus, specimen, distilled, "
        "dropper, vial, test tube, graduated cylinder, science"
    ),
    "electronics and wiring": (
        "arduino, raspberry, breadboard, pcb, resistor, capacitor, diode, transistor, led, electronic, solder, wire, "
        "electrical, terminal, awg, cable, usb, voltage, multimeter, relay, oscilloscope, audio, circuit, coaxial, "
        "heat shrink, thermocouple, dc, ohm, sensor, network, battery"
    ),
    "cars, bikes and boats": (
        "car, auto, automotive, marine, boat, bike, bicycle, trailer, motorcycle, rv, truck, vehicle, fuel"
    ),
    "plumbing and garden": (
        "plumbing, pipe, faucet, toilet, bath, bathroom, garden, hose, npt, drain, water, shower, sink, aquarium, "
        "hydroponics, barb"
    ),
    "cleaning and laundry": (
        "vacuum, vac, clean, cleaner, cleaning, mop, trash, wipe, dust, laundry, carpet, sponge, towel, odor, "
        "degreaser, rust, disinfectant, soap, bissell, hoover"
    ),
    "measuring and inspection": (
        "caliper, gauge, micrometer, inspection, thermometer, scale, meter, tester, measuring, measurement, "
        "indicator, borescope, endoscope, calibration, level, protractor, detector"
    ),
    "drilling, cutting and grinding": (
        "drill, end mill, milling, lathe, machinist, tap, die, grinding, sanding, dremel, cutting, polishing, cnc, "
        "rotary, abrasive, bur"
    ),
    "sticking and sealing": "tape, adhesive, glue, caulk, sealant, epoxy, velcro, seal, cement, threadlocker",
    "fixing and hanging": (
        "screw, bolt, nail, nut, washer, anchor, hook, bracket, drywall, staple, brad, hanger, fastener, deck, hinge, "
        "magnet, mounting"
    ),
    "moving and lifting": "caster, dolly, cart, lifting, winch, jack, pulley, ramp, tie down, ratchet, strap, grabber",
    "packing and storing": "packaging, shipping, packing, moving, storage, box, bag, carton, stretch wrap, reclosable",
    "safety": "safety, emergency, fire, radiation, warning, eyewear, caution, hazard, lockout, non-slip",
    "toys and teaching": "toy, educational, kid, gift, lava, gyroscope, newton, puzzle, student, hobby, craft, jewelry",
}

COLOURS = {
    "black": "black",
    "white": "white, ivory, almond",
    "grey or silver": "gray, grey, silver, gunmetal",
    "clear": "clear, transparent, translucent, see through",
    "red": "red, burgundy, maroon",
    "orange": "orange, amber",
    "yellow or gold": "yellow, gold",
    "green": "green, lime",
    "blue": "blue, turquoise, teal, sapphire, cyan, navy, aqua",
    "purple or pink": "purple, pink, violet, magenta",
    "brown or natural": "brown, natural, tan, beige, wood color",
    "many colours": "multicolor, multi-color, assorted color, colors, rainbow, colour changing",
}

TRAITS = {
    "digital": "digital, lcd, programmable, electronic, smart, wireless, bluetooth, wifi",
    "water-proof": "waterproof, water resistant, weatherproof, water-resistant, marine, outdoor",
    "heat-resistant": "heat resistant, heat-resistant, high temperature, high temp, heat, high-temp",
    "adhesive": "self-adhesive, adhesive, sticky, adhesive backed, self adhesive",
    "insulated": "insulated, fully-insulated, fully insulated, non-conductive",
    "heavy duty": "heavy duty, heavy-duty, industrial strength, extra strong, super strong, high strength",
    "adjustable": "adjustable, variable, flexible, telescoping, swivel",
    "magnetic": "magnetic, magnet",
    "disposable": "disposable, single use, powder free, powder-free",
    "sterile or medical": "sterile, surgical, medical grade, non-sterile",
    "rechargeable or cordless": "rechargeable, cordless, battery, battery powered, handheld",
    "precise": "precision, accuracy, accurate, dimensional accuracy, calibration",
    "assortment": "assortment, assorted, kit, combo, variety",
    "premium": "premium, professional, pro, commercial, ultra",
    "food safe": "food grade, food safe, food, bpa free, fda",
    "compact": "mini, compact, portable, pocket, small, micro",
}

THEMES = {
    "war": "war, army, soldier, military, battle, nazi, wwii, vietnam, troop",
    "crime": (
        "police, cop, detective, murder, killer, crime, criminal, fbi, gang, gangster, mafia, mob, robbery, heist, "
        "thief, thieves, drug"
    ),
    "law and prison": "prison, lawyer, court, trial, jail, judge, jury, convict",
    "love": "love, girlfriend, boyfriend, affair, romance, lover, falls for, wedding, marry, engaged",
    "family": "family, father, mother, son, daughter, brother, sister, parent, marriage, husband, wife",
    "youth and school": "school, college, student, teenager, teen, teacher, university, prom, kid, boy, girl",
    "sport": "football, baseball, basketball, boxing, boxer, coach, championship, golf, hockey, tournament",
    "music and dance": "music, band, singer, dance, dancer, song, concert, rock star, musician, opera",
    "space": "space, planet, alien, spaceship, galaxy, astronaut, starship, mars",
    "science": "scientist, experiment, computer, machine, virus, technology, robot, android, future",
    "horror beings": "vampire, zombie, ghost, monster, witch, demon, haunted, werewolf, devil, satan",
    "kings and magic": "king, queen, princess, prince, magic, magical, wizard, kingdom, dragon, fairy, sword, castle",
    "animals": "dog, cat, horse, animal, bear, lion, shark, dinosaur, wolf, pig, bird",
    "sea": "ship, island, sea, ocean, boat, pirate, submarine, beach, sailor",
    "wild and west": "mountain, desert, jungle, forest, wilderness, cowboy, sheriff, ranch, outlaw, indian, river",
    "work and money": "money, business, job, boss, company, wall street, rich, wealthy, millionaire",
    "politics and spies": "president, government, spy, spies, secret agent, cia, terrorist, politician, senator, kgb",
    "illness": "hospital, doctor, cancer, dying, suicide, disease, blind, mental, illness",
    "stage and press": (
        "hollywood, actor, actress, television, journalist, reporter, writer, novelist, theatre, theater"
    ),
}

ORIGINS = {
    "sequel": "sequel, prequel, installment, instalment, second film in, third film in, fourth film in",
    "remake": "remake, reimagining, remade",
    "comic": "comic, comic book, graphic novel, manga, comics",
    "television": "television series, tv series, television show, saturday night live, cartoon",
    "true story": "true story, real-life, biographical, biopic, true events, real life",
    "play or musical": "play of the same name, stage play, stage musical, broadway, play by, shakespeare",
    "novel": "novel, book, short story, novella, fairy tale, memoir, autobiography",
}
